"""From the logical axes that modules write on their parameters to shardings over the mesh.

Modules annotate (`nn.with_logical_partitioning`), `RULES` says which mesh axis a logical axis is split
over, and `state_shardings` does the rest for a whole training state: parameters by their annotations,
everything shaped like a parameter (EMA, moments, accumulated gradients) like that parameter, and what is
left on every device. No module asks how many devices there are.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from absl import logging
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from process_gen.distributed.mesh import MeshError

Rules = Mapping[str, str | tuple[str, ...] | None]

RULES: Rules = {
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "head_dim": None,
    "latent": None,
    "layers": None,
    "norm": None,
    "patch": None,
    "position": None,
    "time": None,
}

BATCH_AXES = ("data", "fsdp")

ACTIVATION_RULES: Rules = {
    "rows": BATCH_AXES,
    "tokens": "context",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}
"""For `process_gen.models.partition.over`: which mesh axis an axis of an activation is split over."""

_LARGE = 1 << 20  # elements; an array above it that ends up on every device is worth a line in the log


def path_name(path: tuple[Any, ...]) -> str:
    """`a/b/c` for a path of `jax.tree_util`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def partition_spec(
    name: str, shape: tuple[int, ...], logical_axes: tuple[str | None, ...], mesh: Mesh, rules: Rules = RULES
) -> P:
    """Which mesh axes an array is split over.

    A dimension that its mesh axis does not divide stays whole, with a line in the log.

    Raises:
      MeshError: a logical axis has no rule, the axes do not match the shape, or two dimensions of one array
        would be split over the same mesh axis.
    """
    if len(logical_axes) != len(shape):
        raise MeshError(f"{name}: logical axes {logical_axes} do not match shape {shape}")
    used: dict[str, str] = {}
    spec: list[str | tuple[str, ...] | None] = []
    for logical, size in zip(logical_axes, shape, strict=True):
        axes = _mesh_axes(name, logical, rules)
        for axis in axes:
            if axis in used:
                raise MeshError(
                    f"{name}: mesh axis {axis!r} would split two dimensions, {used[axis]!r} and {logical!r}, "
                    f"of shape {shape} with logical axes {logical_axes}; give one another rule, or None"
                )
            used[axis] = str(logical)
        split = math.prod(mesh.shape[axis] for axis in axes)
        if size % split:
            logging.warning(
                "%s: dimension %s of %d does not divide by %s=%d, so it stays whole",
                name, logical, size, "*".join(axes), split,
            )  # fmt: skip
            axes = ()
        spec.append(None if split == 1 or not axes else axes[0] if len(axes) == 1 else axes)
    while spec and spec[-1] is None:
        spec.pop()
    return P(*spec)


def _mesh_axes(name: str, logical: str | None, rules: Rules) -> tuple[str, ...]:
    if logical is None:
        return ()
    if logical not in rules:
        near = difflib.get_close_matches(logical, rules, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; the rules know {', '.join(sorted(rules))}"
        raise MeshError(f"{name}: no sharding rule for logical axis {logical!r}{hint}")
    axes = rules[logical]
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)


def unbox(tree: Any) -> Any:
    """The tree without the boxes that hold the logical axes."""
    return jax.tree.map(lambda x: x.unbox(apply_constraint=False) if _is_box(x) else x, tree, is_leaf=_is_box)


def _is_box(x: Any) -> bool:
    return isinstance(x, nn.LogicallyPartitioned)


def state_shardings(abstract: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """A `NamedSharding` for every array of a state, in the structure of `unbox(abstract)`.

    Args:
      abstract: shapes and dtypes of the state, with the modules' annotations somewhere in it (as
        `jax.eval_shape` of an initializer gives it when the parameters have not been unboxed).
      mesh: the devices.
      rules: logical axis -> mesh axis.

    An array without annotations follows the annotated one whose path ends its own path and which has the
    same shape: `opt_state/0/mu/block/kernel` follows `params/block/kernel`.
    """
    boxed = jax.tree_util.tree_leaves_with_path(abstract, is_leaf=_is_box)
    annotated: dict[tuple[str, tuple[int, ...]], P] = {}
    for path, leaf in boxed:
        if _is_box(leaf):
            spec = partition_spec(path_name(path), leaf.value.shape, tuple(leaf.names), mesh, rules)
            parts = path_name(path).split("/")
            # The whole path is the array itself; without its first part, its name inside the parameters.
            for start in (0, 1):
                annotated["/".join(parts[start:]), leaf.value.shape] = spec

    def sharding(path, leaf):
        parts = path_name(path).split("/")
        for start in range(len(parts)):
            spec = annotated.get(("/".join(parts[start:]), leaf.shape))
            if spec is not None:
                return NamedSharding(mesh, spec)
        if leaf.size >= _LARGE and mesh.size > 1:
            logging.warning(
                "%s %s has no logical axes: every device holds it whole", path_name(path), leaf.shape
            )
        return NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(sharding, unbox(abstract))


def abstract_state(init: Callable[..., Any], *args: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """The state that `init(*args)` would make, as shapes, dtypes and shardings: no memory is taken."""
    abstract = jax.eval_shape(init, *args)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        unbox(abstract),
        state_shardings(abstract, mesh, rules),
    )


def create_state(init: Callable[..., Any], *args: Any, mesh: Mesh, rules: Rules = RULES) -> tuple[Any, Any]:
    """Makes a state in place on the mesh: shapes, then shardings, then bytes.

    Args:
      init: returns the state, annotations included (parameters as the model's `init` gives them); it is
        compiled with the shardings of its result, so that no device ever holds a full copy.
      *args: its arguments, usually one key.
      mesh: the devices.
      rules: logical axis -> mesh axis.

    Returns:
      The state without annotations, and its shardings.
    """
    shardings = state_shardings(jax.eval_shape(init, *args), mesh, rules)
    return jax.jit(lambda *xs: unbox(init(*xs)), out_shardings=shardings)(*args), shardings


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows (axis 0) over `data` and `fsdp`, everything else whole."""
    return NamedSharding(mesh, P(BATCH_AXES))


def rows_divide(rows: int, mesh: Mesh) -> None:
    """Checks that a global batch of `rows` splits evenly over the mesh.

    Raises:
      MeshError: it does not; the message names the sizes.
    """
    split = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if rows % split:
        raise MeshError(
            f"a batch of {rows} rows does not divide over {split} shards "
            f"(data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']}); use a multiple of {split}"
        )


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Places this host's rows of a batch (NumPy arrays) on the mesh, as one global array per field."""
    sharding = batch_sharding(mesh)
    for rows in {x.shape[0] for x in jax.tree.leaves(batch)}:
        rows_divide(rows * jax.process_count(), mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
