"""The arrays in a saved item: what a state would store, and what is really found on disk.

orbax stores every array of an item in one database of key and value (OCDBT), as zarr: a description
`NAME/.zarray`, and the chunks `NAME/I.J`. What is found is asked of that database, not of the files
that orbax writes beside it to say what it meant to store.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore as ts

# (name, dtype, shape), in the order of the tree's leaves.
Described = Sequence[Sequence[Any]]
_ZARRAY = "/.zarray"


def described(tree: Any) -> list[list[Any]]:
    """[name, dtype, shape] of every array of a tree, as JSON holds it."""
    return [
        [jax.tree_util.keystr(path, simple=True, separator="."), str(x.dtype), list(x.shape)]
        for path, x in jax.tree.leaves_with_path(tree)
    ]


def missing(item: Path, wanted: Described | None) -> list[str]:
    """What an item should hold and does not, a line each; empty where all of it can be opened.

    Without `wanted` (of a version that did not note it) some array must be there. `item` is a path
    from `paths.plain`.
    """
    try:
        keys = [
            key.decode(errors="replace")
            for key in ts.KvStore.open(_base(item)).result().list().result()
        ]
        arrays = {
            key.removesuffix(_ZARRAY): _open(item, key) for key in keys if key.endswith(_ZARRAY)
        }
    except (ValueError, OSError) as error:
        return [f"its arrays cannot be opened ({str(error)[:120]})"]
    if wanted is None:
        return [] if arrays else ["holds no arrays"]
    chunks = Counter(key.rpartition("/")[0] for key in keys if not key.endswith(_ZARRAY))
    lines = []
    for name, dtype, shape in wanted:
        if name not in arrays:
            lines.append(f"array {name} is missing")
            continue
        found = arrays[name]
        if (found.dtype.name, list(found.shape)) != (dtype, list(shape)):
            lines.append(
                f"array {name} is {found.dtype.name}{list(found.shape)}, saved was "
                f"{dtype}{list(shape)}"
            )
        elif chunks[name] != (parts := _parts(found)):
            lines.append(f"array {name} has {chunks[name]} of its {parts} parts")
    return lines


def arrays_of(item: Path, wanted: Described) -> Iterator[np.ndarray]:
    """Those arrays of an item, one after the other. Raises ValueError."""
    for name, *_ in wanted:
        yield _open(item, name + _ZARRAY).read().result()


def _parts(array: Any) -> int:
    """The chunks of an array; all are stored, also those of zeros."""
    layout = array.chunk_layout.write_chunk.shape or ()
    return math.prod(-(-size // part) if size else 0 for size, part in zip(array.shape, layout))


def _base(item: Path) -> dict[str, Any]:
    return {"driver": "ocdbt", "base": {"driver": "file", "path": f"{item}/"}}


def _open(item: Path, key: str) -> Any:
    store = {**_base(item), "path": key.removesuffix(".zarray")}
    return ts.open({"driver": "zarr", "kvstore": store}, open=True).result()
