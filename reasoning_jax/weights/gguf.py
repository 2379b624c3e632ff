"""GGUF, versions 2 and 3: header, tensor table and dequantisation, for files that may be hostile.

Every count, length and offset is compared with the file's size before it is used; values are
decoded when they are asked for, from a memory map. Format: the GGUF specification of ggml
(docs/gguf.md), block layouts of ggml-quants. What the values mean is `gguf_model.py`'s business;
nothing here writes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from reasoning_jax.weights.files import WeightsError, short

MAX_ENTRIES = 1 << 16  # key-value pairs, tensors
MAX_STRINGS = 1 << 20  # strings in all arrays together
MAX_STRING_BYTES = 1 << 20
_MAX_NAME_BYTES = 1 << 10
_STRING, _ARRAY = 8, 9

# Value type -> little-endian scalar; strings and arrays are handled by hand.
_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8",
    11: "<i8", 12: "<f8",
}  # fmt: skip
_UNREAD_TYPES = {
    6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K",
    15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """uint8 [n, 16] -> float32 [n, 32]: all low halves, then all high halves."""
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    values = _nibbles(blocks["q"])
    values -= 8
    values *= blocks["d"].astype(np.float32)[:, None]
    return values


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    values = _nibbles(blocks["q"])
    values *= blocks["d"].astype(np.float32)[:, None]
    values += blocks["m"].astype(np.float32)[:, None]
    return values


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    values = blocks["q"].astype(np.float32)
    values *= blocks["d"].astype(np.float32)[:, None]
    return values


@dataclass(frozen=True)
class _Type:
    """A tensor type: values a block, the block's fields, and a block array's float values."""

    name: str
    values: int
    block: np.dtype
    dequantise: Callable[[np.ndarray], np.ndarray]


def _plain(blocks: np.ndarray) -> np.ndarray:
    return blocks


_TYPES = {
    0: _Type("F32", 1, np.dtype("<f4"), _plain),
    1: _Type("F16", 1, np.dtype("<f2"), _plain),
    2: _Type("Q4_0", 32, np.dtype([("d", "<f2"), ("q", "u1", 16)]), _q4_0),
    3: _Type("Q4_1", 32, np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)]), _q4_1),
    8: _Type("Q8_0", 32, np.dtype([("d", "<f2"), ("q", "i1", 32)]), _q8_0),
    30: _Type("BF16", 1, np.dtype(ml_dtypes.bfloat16), _plain),
}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of the table: shape slowest axis first, type code, absolute offset in the file."""

    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class _Value:
    """Where a metadata value lies: its type, that of its elements, how many, and from where."""

    type: int
    element: int
    count: int
    offset: int


@dataclass(frozen=True)
class GgufFile:
    """An opened file. Nothing but names and positions has been decoded."""

    source: str
    data: np.ndarray
    values: dict[str, _Value]
    tensors: dict[str, TensorInfo]

    def scalar(self, key: str) -> Any:
        """A number, boolean or string; None where the key is absent or holds an array."""
        value = self.values.get(key)
        if value is None or value.type == _ARRAY:
            return None
        cursor = _Cursor(self.source, self.data, value.offset)
        if value.type == _STRING:
            return cursor.string(MAX_STRING_BYTES)
        return cursor.scalar(_SCALARS[value.type])

    def scalars(self, prefix: str) -> dict[str, Any]:
        """All scalars whose key starts with `prefix`, under the rest of their key."""
        return {k.removeprefix(prefix): self.scalar(k) for k in self.values if k.startswith(prefix)}

    def numbers(self, key: str) -> np.ndarray | None:
        """A numeric array, or None. Raises WeightsError where the key holds something else."""
        value = self._array(key)
        if value is None:
            return None
        if value.element == _STRING:
            raise WeightsError(f"{self.source}: {key} must be numbers, got strings")
        dtype = np.dtype(_SCALARS[value.element])
        return self.data[value.offset : value.offset + value.count * dtype.itemsize].view(dtype)

    def strings(self, key: str) -> Iterator[str]:
        """The strings of an array, decoded one by one. Raises WeightsError."""
        value = self._array(key)
        if value is None:
            return
        if value.element != _STRING:
            raise WeightsError(f"{self.source}: {key} must be strings")
        cursor = _Cursor(self.source, self.data, value.offset)
        for _ in range(value.count):
            yield cursor.string(MAX_STRING_BYTES)

    def _array(self, key: str) -> _Value | None:
        value = self.values.get(key)
        if value is not None and value.type != _ARRAY:
            raise WeightsError(f"{self.source}: {key} must be an array")
        return value

    def read(self, name: str) -> np.ndarray:
        """A tensor's values: float32, or as stored where it is F16 or BF16."""
        info = self.tensors[name]
        kind = _TYPES[info.type]
        size = _bytes(kind, info.shape)
        blocks = self.data[info.offset : info.offset + size].view(kind.block)
        with np.errstate(all="ignore"):
            return kind.dequantise(blocks).reshape(info.shape)

    def check_types(self, ignored: str) -> None:
        """Raises WeightsError naming the first tensor of a type that is not read, unless its whole
        name matches the expression `ignored`.
        """
        for name, info in self.tensors.items():
            if info.type not in _TYPES and not re.fullmatch(ignored, name):
                kind = _UNREAD_TYPES.get(info.type, f"number {info.type}")
                raise WeightsError(
                    f"{self.source}: tensor {short(name)} is of type {kind}; read are "
                    f"{', '.join(t.name for t in _TYPES.values())}; convert the file to one of them"
                )


def open_gguf(path: Path) -> GgufFile:
    """Read the header and the tensor table of a GGUF file.

    Raises:
      WeightsError: not GGUF, another version, or a count, length, offset or type that does not fit
        the file; tensors that overlap.
    """
    source = str(path)
    try:
        if not path.is_file():
            raise WeightsError(f"{source}: there is no such file")
        if path.stat().st_size < 24:
            raise WeightsError(f"{source}: {path.stat().st_size} bytes is no GGUF file")
        data = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    except OSError as error:
        raise WeightsError(f"{source}: {error.strerror or 'cannot be read'}") from None
    cursor = _Cursor(source, data, 4)
    version = cursor.unsigned(4)
    if data[:4].tobytes() != b"GGUF" or version not in (2, 3):
        magic = data[:4].tobytes()
        raise WeightsError(f"{source}: wanted GGUF version 2 or 3, got {magic!r} {version}")
    n_tensors = cursor.count(MAX_ENTRIES, "tensors", least_bytes=24)
    n_values = cursor.count(MAX_ENTRIES, "keys", least_bytes=13)
    values = _read_values(cursor, n_values)
    tensors = _read_table(cursor, n_tensors)
    header = GgufFile(source, data, values, {})
    alignment = header.scalar("general.alignment")
    alignment = 32 if alignment is None else alignment
    if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise WeightsError(f"{source}: general.alignment={short(alignment)} is no power of two")
    start = -(-cursor.position // alignment) * alignment
    placed = {
        name: TensorInfo(info.shape, info.type, start + info.offset)
        for name, info in tensors.items()
    }
    _check_places(placed, alignment, start, source, len(data))
    return GgufFile(source, data, values, placed)


@dataclass
class _Cursor:
    """A position in the file that never passes its end."""

    source: str
    data: np.ndarray
    position: int

    def skip(self, size: int) -> int:
        """Step over `size` bytes; returns where they start."""
        start = self.position
        if size > len(self.data) - start:
            raise WeightsError(
                f"{self.source}: {size:,} bytes at {start:,} reach beyond the end of the file "
                f"({len(self.data):,} bytes); is it cut short?"
            )
        self.position = start + size
        return start

    def scalar(self, dtype: str) -> Any:
        size = np.dtype(dtype).itemsize
        start = self.skip(size)
        return self.data[start : start + size].view(dtype)[0].item()

    def unsigned(self, size: int) -> int:
        code = "<Q" if size == 8 else "<I"
        return struct.unpack_from(code, self.data.data, self.skip(size))[0]

    def count(self, limit: int, what: str, least_bytes: int) -> int:
        """A number of things that take at least `least_bytes` each."""
        n = self.unsigned(8)
        if n > min(limit, (len(self.data) - self.position) // least_bytes):
            raise WeightsError(
                f"{self.source}: {n:,} {what} do not fit: at most {limit:,}, of at least "
                f"{least_bytes} bytes each in a file of {len(self.data):,} bytes"
            )
        return n

    def skip_string(self, limit: int) -> tuple[int, int]:
        """Step over a string; returns where its bytes start and end."""
        size = self.unsigned(8)
        if size > limit:
            raise WeightsError(f"{self.source}: a string of {size:,} bytes; at most {limit:,}")
        start = self.skip(size)
        return start, start + size

    def string(self, limit: int) -> str:
        start, end = self.skip_string(limit)
        try:
            return self.data[start:end].tobytes().decode("utf-8")
        except UnicodeDecodeError:
            raise WeightsError(f"{self.source}: the string at {start:,} is not UTF-8") from None


def _read_values(cursor: _Cursor, count: int) -> dict[str, _Value]:
    values: dict[str, _Value] = {}
    strings = MAX_STRINGS
    for _ in range(count):
        key, kind = cursor.string(_MAX_NAME_BYTES), cursor.unsigned(4)
        if key in values:
            raise WeightsError(f"{cursor.source}: key {short(key)} is there twice")
        element, n = kind, 1
        if kind == _ARRAY:
            element = cursor.unsigned(4)
            n = cursor.count(len(cursor.data), f"elements of {short(key)}", least_bytes=1)
        if element != _STRING and element not in _SCALARS:
            what = "arrays in an array" if element == _ARRAY else f"type {element}"
            raise WeightsError(f"{cursor.source}: {short(key)} holds {what}; that is not read")
        values[key] = _Value(kind, element, n, cursor.position)
        if element != _STRING:
            cursor.skip(n * np.dtype(_SCALARS[element]).itemsize)
            continue
        strings -= n
        if strings < 0:
            raise WeightsError(f"{cursor.source}: more than {MAX_STRINGS:,} strings")
        for _ in range(n):
            cursor.skip_string(MAX_STRING_BYTES)
    return values


def _read_table(cursor: _Cursor, count: int) -> dict[str, TensorInfo]:
    """Tensors with offsets relative to the data section, shapes slowest axis first."""
    tensors: dict[str, TensorInfo] = {}
    for _ in range(count):
        name, axes = cursor.string(_MAX_NAME_BYTES), cursor.unsigned(4)
        if name in tensors:
            raise WeightsError(f"{cursor.source}: tensor {short(name)} is there twice")
        if not 1 <= axes <= 4:
            raise WeightsError(f"{cursor.source}: tensor {short(name)} has {axes} axes; 1 to 4")
        shape = tuple(cursor.unsigned(8) for _ in range(axes))[::-1]
        tensors[name] = TensorInfo(shape, cursor.unsigned(4), cursor.unsigned(8))
    return tensors


def _bytes(kind: _Type, shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n // kind.values * kind.block.itemsize


def _check_places(
    tensors: dict[str, TensorInfo], alignment: int, start: int, source: str, size: int
) -> None:
    """Tensors of known types lie whole inside the file, aligned, and share no byte."""
    end, last = start, ""
    for name, info in sorted(tensors.items(), key=lambda item: item[1].offset):
        kind = _TYPES.get(info.type)
        if kind is None:
            continue
        where = f"{source}: tensor {short(name)} {kind.name} {short(info.shape)}"
        if any(axis < 1 for axis in info.shape) or info.shape[-1] % kind.values:
            raise WeightsError(f"{where}: axes must be positive, the last in {kind.values}s")
        if (info.offset - start) % alignment:
            raise WeightsError(f"{where}: its offset is not a multiple of {alignment}")
        if info.offset + _bytes(kind, info.shape) > size:
            raise WeightsError(f"{where} reaches beyond the end of the file ({size:,} bytes)")
        if info.offset < end:
            raise WeightsError(f"{where} overlaps tensor {short(last)}")
        end, last = info.offset + _bytes(kind, info.shape), name
