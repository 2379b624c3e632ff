"""Whether a checkpoint fits on a disk, told before it is begun."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax

# Beside the arrays: metadata, JSON, directories.
_EXTRA_BYTES = 1 << 20


def check_space(folder: Path, nbytes: int) -> None:
    """Refuse to begin what would not fit.

    Raises:
      OSError: fewer than `nbytes` and some metadata are free there.
    """
    free = shutil.disk_usage(folder).free
    needed = nbytes + _EXTRA_BYTES
    if free < needed:
        raise OSError(
            f"a checkpoint takes {_mib(needed)}, {_mib(free)} are free on the disk of {folder}; "
            "free space, or lower train.keep_last"
        )


def nbytes(tree: Any) -> int:
    """Bytes that this process holds of a tree of arrays."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shards = getattr(leaf, "addressable_shards", None)
        parts = [s.data for s in shards if s.replica_id == 0] if shards is not None else [leaf]
        total += sum(int(part.nbytes) for part in parts)
    return total


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.1f} MiB"
