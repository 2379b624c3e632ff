"""The mesh, the rules from logical axes to mesh axes, and helpers for Explicit-mode sharding.

One mesh shape serves a laptop and a pod: `(data, fsdp, tensor)`, axis types Explicit, so that a
wrong layout is an error at trace time. Batches are split over `data` and `fsdp`; parameters over
`fsdp` (gathered where they are used) and `tensor`. Every helper also works without a mesh in
context, so the model can be called from a notebook with plain arrays.

This module never decides sizes: `config.validate` has already refused what does not divide.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# Logical axis of a parameter -> mesh axis that splits it.
RULES: dict[str, str | None] = {
    "layers": None,
    "vocab": "tensor",
    "positions": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "ff": "tensor",
    "rank": None,
    "norm": None,
}


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A `(data, fsdp, tensor)` Explicit mesh; one axis may be -1 and takes the remaining devices.

    Raises:
      ValueError: the axes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = resolve_mesh_shape((data, fsdp, tensor), len(devices))
    return jax.make_mesh(shape, MESH_AXES, devices=devices)


def resolve_mesh_shape(shape: tuple[int, int, int], devices: int) -> tuple[int, int, int]:
    """Replace the one -1 of a mesh shape. Raises ValueError when it cannot cover the devices."""
    known = int(np.prod([n for n in shape if n != -1]))
    if shape.count(-1) > 1 or any(n < 1 and n != -1 for n in shape):
        raise ValueError(f"mesh axes must be positive, one of them may be -1; got {shape}")
    if -1 in shape:
        if devices % known:
            raise ValueError(f"mesh {shape} does not divide {devices} devices")
        data, fsdp, tensor = (devices // known if n == -1 else n for n in shape)
        return data, fsdp, tensor
    if known != devices:
        raise ValueError(f"mesh {shape} covers {known} devices, there are {devices}")
    return shape


def param_spec(axes: Sequence[str], shape: Sequence[int], mesh: Mesh) -> P:
    """The PartitionSpec of a parameter. A vocabulary that `tensor` does not divide is replicated.

    Raises:
      ValueError: another axis is not divisible by its mesh axis.
    """
    entries: list[str | None] = []
    for name, size in zip(axes, shape, strict=True):
        mesh_axis = RULES[name]
        parts = mesh.shape[mesh_axis] if mesh_axis else 1
        if size % parts:
            if name != "vocab":
                raise ValueError(f"{name} of size {size} is not divisible by {mesh_axis}={parts}")
            mesh_axis = None
        entries.append(mesh_axis)
    return P(*entries)


def batch_sharding(mesh: Mesh, ndim: int = 2) -> NamedSharding:
    """Sharding of an array whose first axis is the global batch."""
    return NamedSharding(mesh, P(BATCH_AXES, *[None] * (ndim - 1)))


def batch_parts(mesh: Mesh) -> int:
    """Among how many groups of devices a batch is divided."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def place_rows(x: np.ndarray, mesh: Mesh) -> Any:
    """An array whose first axis is the global batch, on the devices of one process."""
    return jax.device_put(x, batch_sharding(mesh, x.ndim))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def has_mesh() -> bool:
    """Whether a mesh is in context (and array types therefore carry shardings)."""
    return not jax.sharding.get_abstract_mesh().empty


def one_device() -> bool:
    """Whether there is no mesh, or one of a single device."""
    return not has_mesh() or jax.sharding.get_abstract_mesh().size == 1


def axis_of(x: jax.Array, axis: int) -> Any:
    """The mesh axis (or axes) over which `x` is split along `axis`; None without a mesh."""
    return jax.typeof(x).sharding.spec[axis] if has_mesh() else None


def reshard(x: jax.Array, spec: P) -> jax.Array:
    """`jax.reshard` where a mesh is in context, otherwise `x`."""
    return jax.reshard(x, spec) if has_mesh() else x


def whole(x: jax.Array) -> jax.Array:
    """`x` with its last axis whole on every device: for sorting, looking up, or adding in order."""
    return reshard(x, P(*(axis_of(x, i) for i in range(x.ndim - 1)), None))


def reshape(x: jax.Array, shape: tuple[int, ...], spec: P | None = None) -> jax.Array:
    """`x` in another shape; said explicitly, since a mesh of one device has split axes too."""
    if not has_mesh():
        return x.reshape(shape)
    return jnp.reshape(x, shape, out_sharding=spec or P(*[None] * len(shape)))


def gather_fsdp(w: jax.Array) -> jax.Array:
    """A parameter as computation wants it: whole along `fsdp`, still split along `tensor`."""
    if not has_mesh():
        return w
    spec = jax.typeof(w).sharding.spec
    if "fsdp" not in spec:
        return w
    return jax.reshard(w, P(*[None if s == "fsdp" else s for s in spec]))


def linear(x: jax.Array, w: jax.Array, n_in: int = 1, dtype: Any = None) -> jax.Array:
    """Contract the last `n_in` axes of `x` with the first `n_in` of `w`, whatever their sharding.

    Output axes keep the sharding of the input axes they come from; a contraction over a split
    axis is summed over the devices.
    """
    lead, out = x.shape[: x.ndim - n_in], w.shape[n_in:]
    kwargs: dict[str, Any] = {"preferred_element_type": dtype}
    spec = None
    if has_mesh():
        spec_x, spec_w = jax.typeof(x).sharding.spec, jax.typeof(w).sharding.spec
        spec = P(*spec_x[: len(lead)], *spec_w[n_in:])
    if one_device():
        # On one device a product of two matrices: XLA's CPU backend is slow at more axes, above
        # all in the gradient of the weight, which contracts several.
        inner = math.prod(w.shape[:n_in])
        y = jnp.matmul(reshape(x, (-1, inner)), reshape(w, (inner, -1)), **kwargs)
        return reshape(y, (*lead, *out), spec)
    letters = iter(string.ascii_letters)
    names = [[next(letters) for _ in range(n)] for n in (len(lead), n_in, len(out))]
    rows, contracted, columns = map("".join, names)
    equation = f"{rows}{contracted},{contracted}{columns}->{rows}{columns}"
    return jnp.einsum(equation, x, w, out_sharding=spec, **kwargs)


def lookup(table: jax.Array, ids: jax.Array) -> jax.Array:
    """`table[ids]` for a table [V, D] of any sharding and ids [B, T]: [B, T, D], batch-sharded."""
    if not has_mesh():
        return table[ids]
    table = jax.reshard(table, P(None, None))
    return table.at[ids].get(out_sharding=P(*jax.typeof(ids).sharding.spec, None))


def split_rows(x: jax.Array, parts: int) -> jax.Array:
    """[B, ...] as [B / parts, parts, ...]: neighbours side by side, on the device that had them."""
    shape = (x.shape[0] // parts, parts, *x.shape[1:])
    # Where a device has one row, mesh axes of size 1 would go to `parts` if the spec did not say.
    rows, *rest = (axis_of(x, i) for i in range(x.ndim))
    return reshape(x, shape, P(rows, None, *rest))


def repeat_rows(x: jax.Array, times: int) -> jax.Array:
    """Repeat each row (a prompt) `times` times in place (its group): [B, ...] -> [B*times, ...]."""
    if not has_mesh():
        return jnp.repeat(x, times, axis=0)
    return jnp.repeat(x, times, axis=0, out_sharding=jax.typeof(x).sharding.spec)
