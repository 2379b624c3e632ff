"""Reading files from strangers: inside one folder, of bounded size, with typed errors.

Nothing here knows what a model is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Far above any published file; a larger one is refused before it is read.
MAX_BYTES = {"config": 1 << 20, "tokenizer_config": 4 << 20, "index": 16 << 20, "text": 64 << 20}
MAX_INTEGER = 2**31 - 1
_REQUIRED = object()


class WeightsError(ValueError):
    """Weights that cannot be read or written; says what was got, what was wanted, what to do."""


def short(value: Any, limit: int = 80) -> str:
    """`value` for an error message: on one line, escaped, at most `limit` characters."""
    text = repr(value[: limit + 1] if isinstance(value, str | list | tuple) else value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def inside(folder: Path, name: str) -> Path:
    """The real path of the file `name` of `folder`, whatever `name` is and wherever it links.

    One layout of links is known and allowed: the Hugging Face cache, where
    `snapshots/REVISION/FILE` points to `blobs/` of the same repository.

    Raises:
      WeightsError: there is no such file, it is not a regular file, or it lies outside the folder.
    """
    try:
        root, real = folder.resolve(strict=True), (folder / name).resolve(strict=True)
        regular = real.is_file()
    except (OSError, RuntimeError, ValueError):
        raise WeightsError(f"{folder}: there is no file {short(name)}") from None
    allowed = {root}
    if root.parent.name == "snapshots":
        allowed.add(root.parent.parent / "blobs")
    if real.parent not in allowed:
        raise WeightsError(
            f"{folder}: {short(name)} leads out of the folder and is not read; copy the file here"
        )
    if not regular:
        raise WeightsError(f"{folder}: {short(name)} is not a regular file")
    return real


def read_text(path: Path, max_bytes: int) -> str:
    """UTF-8 text of at most `max_bytes`, without a byte order mark. Raises WeightsError."""
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise WeightsError(f"{path}: {size:,} bytes; at most {max_bytes:,} are read")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or 'cannot be read'}") from None
    except UnicodeDecodeError:
        raise WeightsError(f"{path}: not UTF-8 text") from None


def read_json(path: Path, max_bytes: int) -> dict[str, Any]:
    """A JSON object. Raises WeightsError."""
    try:
        values = json.loads(read_text(path, max_bytes))
    except WeightsError:
        raise
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not JSON ({short(str(error))})") from None
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: wanted a JSON object, got {short(values)}")
    return values


def field(
    values: Mapping[str, Any], key: str, kind: type, source: str, default: Any = _REQUIRED
) -> Any:
    """`values[key]` as `kind`; null counts as absent, and an int is also a float.

    Raises:
      WeightsError: absent without a default, of another type, not finite, or beyond 32 bits.
    """
    value = values.get(key)
    if value is None:
        if default is _REQUIRED:
            raise WeightsError(f"{source}: {key} is missing")
        return default
    if type(value) is int and abs(value) > MAX_INTEGER:
        raise WeightsError(f"{source}: {key}={short(value)} is beyond {MAX_INTEGER}")
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise WeightsError(f"{source}: {key} must be {kind.__name__}, got {short(value)}")
    if kind is float and not math.isfinite(value):
        raise WeightsError(f"{source}: {key} must be finite, got {value}")
    return value
