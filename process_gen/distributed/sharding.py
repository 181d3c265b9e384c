"""Turns the logical axes that modules annotate on their parameters into shardings over the mesh.

Modules annotate (`nn.with_logical_partitioning`), `RULES` says which mesh axis a logical axis is split
over, and `state_shardings` does the rest for a whole training state: parameters by their annotations,
everything shaped like a parameter (EMA, moments, accumulated gradients) like that parameter, other large
arrays over `fsdp`; small ones are replicated. No module asks how many devices there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from process_gen.common.names import hint
from process_gen.distributed.mesh import MeshError

RULES: Mapping[str, str | None] = {
    "embed": "fsdp",
    **dict.fromkeys(("heads", "kv_heads", "mlp", "vocab"), "tensor"),
    **dict.fromkeys(("head_dim", "latent", "layers", "lora", "norm", "patch", "position", "time")),
}
"""Logical axis of a parameter -> mesh axis that it is split over."""

BATCH_AXES = ("data", "fsdp")

ACTIVATION_RULES: Mapping[str, str | tuple[str, ...]] = {
    **{axis: RULES[axis] for axis in ("heads", "kv_heads", "mlp", "vocab")},
    "rows": BATCH_AXES,
    "tokens": "context",
}
"""For `process_gen.models.partition.on_mesh`: which mesh axis an axis of an activation is split over."""

_LARGE = 1 << 20
"""Number of elements from which an array without logical axes is split over `fsdp`."""


def path_name(path: tuple[Any, ...]) -> str:
    """`a/b/c` for a path of `jax.tree_util`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def partition_spec(name: str, shape: tuple[int, ...], logical_axes: tuple[str | None, ...], mesh: Mesh) -> P:
    """The `PartitionSpec` that `RULES` give an array with these logical axes; `name` is for messages.

    Raises:
      MeshError: a logical axis has no rule, or a mesh axis does not divide its dimension.
    """
    spec: list[str | None] = []
    for logical, size in zip(logical_axes, shape, strict=True):
        if logical is not None and logical not in RULES:
            raise MeshError(f"{name}: no sharding rule for logical axis {logical!r}; {hint(logical, RULES)}")
        axis = None if logical is None else RULES[logical]
        split = 1 if axis is None else mesh.shape[axis]
        if size % split:
            raise MeshError(
                f"{name}: dimension {logical!r} of {size}, of shape {shape}, does not divide over "
                f"{axis}={split}; make config.mesh.{axis} a divisor of {size}, such as "
                f"{math.gcd(size, split)}"
            )
        spec.append(axis if split > 1 else None)
    while spec and spec[-1] is None:
        spec.pop()
    return P(*spec)


def unbox(tree: Any) -> Any:
    """Removes the boxes (`nn.LogicallyPartitioned`) that hold the logical axes from a tree."""
    return jax.tree.map(lambda x: x.unbox(apply_constraint=False) if _is_box(x) else x, tree, is_leaf=_is_box)


def _is_box(x: Any) -> bool:
    return isinstance(x, nn.LogicallyPartitioned)


def state_shardings(abstract: Any, mesh: Mesh) -> Any:
    """A `NamedSharding` for every array of a state, in the structure of `unbox(abstract)`.

    `abstract` are shapes and dtypes with the modules' annotations somewhere among them, as `jax.eval_shape`
    of an initializer gives them when the parameters have not been unboxed.

    An array without annotations follows the annotated one whose path ends its own path and which has the
    same shape: `opt_state/0/mu/block/kernel` follows `params/block/kernel`. A large one that follows none is
    split over `fsdp` along its largest dimension that divides, which is logged. Raises as `partition_spec`.
    """
    annotated: dict[tuple[str, tuple[int, ...]], P] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract, is_leaf=_is_box):
        if _is_box(leaf):
            name, shape = path_name(path), leaf.value.shape
            # The whole path is the array itself; without its first part, its name inside the parameters.
            for key in (name, name.partition("/")[2]):
                annotated[key, shape] = partition_spec(name, shape, tuple(leaf.names), mesh)

    def sharding(path, leaf):
        parts = path_name(path).split("/")
        for start in range(len(parts)):
            spec = annotated.get(("/".join(parts[start:]), leaf.shape))
            if spec is not None:
                return NamedSharding(mesh, spec)
        return NamedSharding(mesh, _fsdp_spec("/".join(parts), leaf, mesh))

    return jax.tree_util.tree_map_with_path(sharding, unbox(abstract))


def _fsdp_spec(name: str, leaf: Any, mesh: Mesh) -> P:
    """Splits a large array that nobody annotated over `fsdp`; small ones stay whole."""
    split = mesh.shape["fsdp"]
    if leaf.size < _LARGE or split == 1:
        return P()
    what = f"{name} {leaf.shape} has no logical axes"
    dividing = [axis for axis, size in enumerate(leaf.shape) if size % split == 0]
    if not dividing:
        logging.warning("%s and fsdp=%d divides no dimension: every device holds it whole", what, split)
        return P()
    axis = max(dividing, key=lambda axis: leaf.shape[axis])
    logging.info("%s: dimension %d is split over fsdp=%d", what, axis, split)
    return P(*[None] * axis, "fsdp")


def abstract_state(init: Callable[..., Any], *args: Any, mesh: Mesh) -> Any:
    """The state that `init(*args)` would make, as shapes, dtypes and shardings: no memory is taken."""
    abstract = jax.eval_shape(init, *args)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        unbox(abstract),
        state_shardings(abstract, mesh),
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows (axis 0) over `data` and `fsdp`, everything else whole."""
    return NamedSharding(mesh, P(BATCH_AXES))


def row_shards(mesh: Mesh) -> int:
    """How many parts the rows of a batch are split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def sampling_axes(rows: int, mesh: Mesh) -> tuple[str, ...]:
    """Mesh axes that the rows of a sampler are split over; () (replicated) where they do not divide."""
    return () if rows % row_shards(mesh) else BATCH_AXES


def rows_divide(rows: int, mesh: Mesh) -> None:
    """Checks that a global batch of `rows` splits evenly over the mesh.

    Raises:
      MeshError: it does not; the message names the sizes.
    """
    split = row_shards(mesh)
    if rows % split:
        raise MeshError(
            f"a batch of {rows} rows does not divide over {split} shards "
            f"(data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']}); use a multiple of {split} "
            "(config.train.batch_size), or fewer shards (config.mesh.data, config.mesh.fsdp)"
        )


def heads_divide(heads: Mapping[str, int], mesh: Mesh) -> None:
    """Checks that `tensor` splits no attention head: `partition_spec` sees only columns, heads x head_dim.

    `heads` maps a key of the config to a number of heads.

    Raises:
      MeshError: `tensor` does not divide a number of heads; the message names it and its config key.
    """
    split = mesh.shape["tensor"]
    for key, count in heads.items():
        if count % split:
            raise MeshError(
                f"config.{key}={count} heads do not divide over tensor={split}; make config.mesh.tensor a "
                f"divisor of {count}, such as {math.gcd(count, split)}, and give the rest to fsdp or context"
            )


def local_rows(rows: int, mesh: Mesh) -> tuple[int, ...]:
    """Which rows of a global batch the devices of this host hold, ascending; raises as `rows_divide`.

    Hosts that share a row (`tensor` or `context` spans them) name the same one.
    """
    rows_divide(rows, mesh)
    held = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    return tuple(sorted({row for (index,) in held for row in range(*index.indices(rows))}))


def shard_batch(batch: Any, mesh: Mesh, rows: int | None = None) -> Any:
    """Makes one global array [rows, ...] per field from this host's NumPy rows (`local_rows`, in its order).

    `rows` is the size of the global batch; by default that of `batch`, which is right on a single host.
    """
    rows, sharding = rows or len(jax.tree.leaves(batch)[0]), batch_sharding(mesh)

    def put(x):
        return jax.make_array_from_process_local_data(sharding, x, (rows, *x.shape[1:]))

    return jax.tree.map(put, batch)


def held_rows(x: jax.Array) -> np.ndarray:
    """This host's rows of a global array that is split as a batch, in the order of `local_rows`."""
    parts = {shard.index[0].start or 0: shard for shard in x.addressable_shards}
    return np.concatenate([np.asarray(parts[start].data) for start in sorted(parts)])


def on_lead(tree: Any) -> Any:
    """Copies global arrays to NumPy arrays on process 0; None on the others. Every process has to call it.

    One array at a time is replicated on the devices.
    """
    lead = jax.process_index() == 0

    def copy(x):
        whole = jax.jit(lambda x: x, out_shardings=replicated(x.sharding.mesh))(x).block_until_ready()
        return np.asarray(whole.addressable_data(0)) if lead else None

    copies = jax.tree.map(copy, tree)
    return copies if lead else None
