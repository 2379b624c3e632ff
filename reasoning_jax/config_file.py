"""Config files: Python, run by design, and the one place of the package that runs any.

What is wrong in a file is told with its name and line. Nothing here knows what a config holds.
"""

from __future__ import annotations

import difflib
import importlib.util
import itertools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from reasoning_jax.config_fields import SHOWN, show
from reasoning_jax.exit_codes import UsageError, exit_code, first_lines

_FUNCTIONS = {
    "get_config": "that returns a ConfigDict",
    "get_sweep": "that returns points, as in docs/sweeps.md",
    "get_study": "that returns a report.study.Study",
}
_MOST_FILES = 1000


def load_config_file(value: str) -> Any:
    """Run FILE[:ARG]'s `get_config` and return what it gives, a ConfigDict. Raises UsageError."""
    name, colon, argument = value.partition(":")
    return open_config_file(name)("get_config", *([argument] if colon else []))


def open_config_file(name: str) -> Callable[..., Any]:
    """Run a config file; returns `call(function, *arguments)`. Both raise UsageError."""
    path = Path(name)
    if not _is_file(path):
        raise UsageError(
            f"--config={show(name)[1:-1]}: there is no such file{nearest_file(path, '*.py')}"
        )
    spec = importlib.util.spec_from_file_location("reasoning_jax_config_file", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _in_words(name, spec.loader.exec_module, module)

    def call(function: str, *arguments: str) -> Any:
        if not hasattr(module, function):
            given = "scale" if function == "get_study" else 'arg=""'
            raise UsageError(
                f"{name} defines no {function}; it needs a `def {function}({given}):` "
                f"{_FUNCTIONS[function]}"
            )
        result = _in_words(name, getattr(module, function), *arguments)
        if function == "get_config" and not isinstance(result, config_dict.ConfigDict):
            raise UsageError(
                f"{name}: get_config must return a ConfigDict, got {type(result).__name__}"
            )
        return result

    return call


def nearest_file(path: Path, pattern: str) -> str:
    """ "; did you mean DIR/NAME?" for what is nearest to a missing file, or to its folder."""
    folder, near = path.parent, None
    if not _is_dir(folder):
        found = _nearest(folder, "*")
        folder = folder.parent / found if found else Path(".")
    if (_is_file(folder / path.name) or _is_dir(folder / path.name)) and folder != path.parent:
        near = path.name
    near = near or _nearest(folder / path.name, pattern)
    return f"; did you mean {folder / near}?" if near else ""


def _nearest(path: Path, pattern: str) -> str | None:
    """The name beside `path` that is nearest to its own."""
    try:
        names = [p.name for p in itertools.islice(path.parent.glob(pattern), _MOST_FILES)]
    except (OSError, ValueError):
        return None
    near = difflib.get_close_matches(path.name[:SHOWN], names, n=1)
    return near[0] if near else None


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, a NUL
        return False


def _in_words(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call into config file `name`; what is wrong there is a UsageError with its line."""
    try:
        return function(*arguments)
    except Exception as error:
        if exit_code(error) is not None:
            raise
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == name]
        where = f", line {lines[-1]}" if lines else ""
        raise UsageError(f"{name}{where}: {type(error).__name__}: {first_lines(error)}") from None
