"""The manifest of a checkpoint step: size and hash of each of its files, its step number, and which
arrays it should hold.

It is written into the step's folder before the folder gets its final name, so a step that is there
has one. `check` says what differs. It reads no parameters and knows no orbax.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from reasoning_jax.durable import sync
from reasoning_jax.fingerprint import ALGORITHM, file_hash

NAME = "manifest.json"
_VERSION = 1
# Of a manifest itself: far above that of any step, far below what would hurt.
_MAX_BYTES = 64 << 20


def write(folder: Path, step: int, arrays: Mapping[str, Any]) -> None:
    """Hash all files of a folder and write its manifest; everything is on disk on return.

    `arrays`: [name, dtype, shape] of each array that was to be saved, by item.

    Raises:
      OSError
    """
    files = {}
    for name, path in sorted(_files(folder)):
        digest, size = file_hash(path)
        sync(path)
        files[name] = {"bytes": size, "hash": digest}
    body = {
        "version": _VERSION, "algorithm": ALGORITHM, "step": step, "arrays": dict(arrays),
        "files": files,
    }  # fmt: skip
    # The folder has not its final name yet: a manifest that is cut off is that of no step.
    text = json.dumps({**body, "hash": _of_body(body)}, separators=(",", ":"))
    (folder / NAME).write_text(text + "\n", encoding="utf-8")
    for path in [folder / NAME, folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        sync(path)


def exists(folder: Path) -> bool:
    return (folder / NAME).is_file()


def arrays(folder: Path) -> dict[str, Any] | None:
    """[name, dtype, shape] of each array that an intact step should hold, by item. None where that
    was not noted, as in steps of earlier versions.
    """
    body, _ = _read(folder)
    return None if body is None else body.get("arrays")


def check(folder: Path, step: int, under: Sequence[str] = ()) -> list[str]:
    """What is not as it was saved, one "file: what" each; empty for an intact step.

    With `under`, only of these subfolders, and of the names of all files. A folder without manifest
    is not intact. Nothing outside the folder is read.
    """
    body, fault = _read(folder)
    if body is None:
        return [f"{NAME}: {fault}"]
    if body["step"] != step:
        return [f"{NAME}: is that of step {body['step']}, in the folder of step {step}"]
    try:
        present = dict(_files(folder))
    except OSError as error:
        return [f"{error.filename or folder}: cannot be read ({error.strerror})"]
    wanted: dict[str, Any] = body["files"]
    found = [f"{name}: is missing" for name in wanted if name not in present]
    found += [f"{name}: does not belong to the step" for name in present if name not in wanted]
    for name in sorted({*wanted} & {*present}):
        if under and not name.startswith(tuple(f"{top}/" for top in under)):
            continue
        found += _differs(name, present[name], wanted[name])
    return found


def _differs(name: str, path: Path, wanted: Any) -> list[str]:
    try:
        if path.is_symlink():
            return [f"{name}: is a link, not the file that was saved"]
        size = path.stat().st_size
        if size != wanted["bytes"]:
            return [f"{name}: has {size} bytes, {wanted['bytes']} were saved"]
        if file_hash(path)[0] != wanted["hash"]:
            return [f"{name}: its content is not what was saved (hash differs)"]
    except OSError as error:
        return [f"{name}: cannot be read ({error.strerror})"]
    return []


def _read(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """(the manifest, ""), or (None, what is wrong with it)."""
    path = folder / NAME
    try:
        if path.is_symlink():
            return None, "is a link, not the file that was saved"
        if path.stat().st_size > _MAX_BYTES:
            return None, "is too large to be a manifest"
        body = json.loads(path.read_bytes())
        digest = body.pop("hash")
        sound = digest == _of_body(body) and body["version"] == _VERSION
        sound = sound and all({"bytes", "hash"} <= {*entry} for entry in body["files"].values())
    except FileNotFoundError:
        return None, "is missing"
    except OSError as error:
        return None, f"cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, "is damaged"
    return (body, "") if sound else (None, "is damaged")


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name, path) of all files below a folder but its manifest; links are files."""

    def fail(error: OSError) -> None:
        raise error

    for top, folders, names in os.walk(folder, onerror=fail):
        links = [name for name in folders if os.path.islink(os.path.join(top, name))]
        for name in [*names, *links]:
            path = Path(top, name)
            relative = path.relative_to(folder).as_posix()
            if relative != NAME:
                yield relative, path


def _of_body(body: dict[str, Any]) -> str:
    """A hash of the manifest's own values, whatever their layout in the file."""
    return xxhash.xxh3_128(json.dumps(body, sort_keys=True).encode()).hexdigest()
