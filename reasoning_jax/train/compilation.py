"""Compiled programs: kept on disk from run to run, and counted.

Whoever can write to the cache can run code here, so it is a folder that belongs to the user alone;
where it cannot be that, nothing is kept. JAX's own settings go first: JAX_COMPILATION_CACHE_DIR
names another folder, JAX_ENABLE_COMPILATION_CACHE=false turns it off.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

_MIN_COMPILE_S = 0.3
# Above this the programs that were not used for longest go, down to half of it.
_MOST_BYTES = 4 << 30
_COMPILING = "/jax/core/compile/"
_COMPILED = "/jax/core/compile/backend_compile_duration"
_TRACED = "/jax/core/compile/jaxpr_trace_duration"
_HIT = "/jax/compilation_cache/cache_hits"


def keep_compiled(folder: Path | None = None) -> Path | None:
    """Have JAX keep its programs in a folder (default: `cache_folder()`), and return it.

    None, with a line on stderr, where the folder is not the user's alone; None without one where
    the user has turned the cache off or chosen a folder.
    """
    now: Any = jax.config
    if not now.jax_enable_compilation_cache or now.jax_compilation_cache_dir:
        return None
    folder = folder or cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        refused = ""
        if found.st_uid != os.getuid():
            refused = "it belongs to another user"
        elif found.st_mode & 0o022:
            refused = "others may write to it; chmod go-w"
        elif not os.access(folder, os.W_OK):
            refused = "it cannot be written"
        else:
            _make_room(folder)
    except OSError as error:
        refused = str(error.strerror)
    if refused:
        print(f"compiled programs are not kept in {folder}: {refused}", file=sys.stderr)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_S)
    return folder


def cache_folder() -> Path:
    """Where programs are kept by default. Machine code of one kind of processor does not run on
    another, and a home folder may be shared: each kind has its own.
    """
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    kind = f"{platform.machine()}-{hashlib.sha256(_processor().encode()).hexdigest()[:12]}"
    return Path(base) / "reasoning_jax" / "compiled" / kind


def _processor() -> str:
    """The features of this machine's processor, as Linux names them."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()


def _make_room(folder: Path) -> None:
    files = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process may be making room too
            found = path.stat()
            files.append((max(found.st_atime, found.st_mtime), found.st_size, path))
    total = sum(size for _, size, _ in files)
    if total <= _MOST_BYTES:
        return
    for _, size, path in sorted(files, key=lambda file: file[:2]):
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size
        if total <= _MOST_BYTES // 2:
            return


class CompileCounter:
    """Counts programs that are compiled or loaded while it is entered: all of them, those of one
    jitted function, those found in the cache, and the seconds that all took.

    `heard(seconds, name)` is called where tracing, lowering or compiling has just ended; `name` is
    that of a function that has been traced, and is compiled next, else "".
    """

    def __init__(self, function: str):
        self._name = f"jit({function})"
        self.heard: Callable[[float, str], None] | None = None
        self._all = self._own = self._hits = 0
        self._seconds = 0.0

    def __enter__(self) -> CompileCounter:
        jax.monitoring.register_event_duration_secs_listener(self._compiled)
        jax.monitoring.register_event_listener(self._event)
        return self

    def __exit__(self, *exc: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._compiled)
        jax.monitoring.unregister_event_listener(self._event)

    def counts(self) -> dict[str, float]:
        """So far: `step_programs` is one for each shape that the function was given."""
        return {
            "step_programs": self._own,
            "programs": self._all,
            "programs_from_cache": self._hits,
            "compile_s": round(self._seconds, 3),
        }

    def _compiled(self, event: str, duration_secs: float, **more: Any) -> None:
        if self.heard is not None and event.startswith(_COMPILING):
            self.heard(duration_secs, str(more.get("fun_name", "")) if event == _TRACED else "")
        if event == _COMPILED:
            self._all += 1
            self._own += more.get("fun_name") == self._name
            self._seconds += duration_secs

    def _event(self, event: str, **_: Any) -> None:
        self._hits += event == _HIT
