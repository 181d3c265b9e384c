"""States as named arrays: the one layout on disk, and the comparison that names what differs.

A state is a dataclass or a dict whose top-level fields become items that can be read on their own. Inside an
item every array has a name such as `backbone/layers/und/q_proj/kernel`, whatever Python classes held it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.checkpoints.errors import CheckpointMismatch

Named = dict[str, Any]

_SHOWN = 6


def fields(state: Any) -> dict[str, Any]:
    """Top-level fields of a state, by name."""
    if isinstance(state, Mapping):
        return dict(state)
    if dataclasses.is_dataclass(state):
        return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    raise TypeError(f"a state is a dataclass or a dict of fields, got {type(state).__name__}")


def named(tree: Any) -> Named:
    """`{'a/b': array}` of a tree; an array alone is called `value`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") or "value" for path, _ in leaves]
    if len(set(names)) != len(names):
        raise ValueError(f"two arrays share a name: {sorted(n for n in set(names) if names.count(n) > 1)}")
    return dict(zip(names, (leaf for _, leaf in leaves), strict=True))


def unnamed(tree: Any, arrays: Named) -> Any:
    """The arrays in the structure of `tree`."""
    return jax.tree.unflatten(jax.tree.structure(tree), [arrays[name] for name in named(tree)])


def nested(arrays: Named) -> dict[str, Any]:
    """`{'a/b': x}` as `{'a': {'b': x}}`."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *folders, leaf = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = array
    return tree


def raw(leaf: Any) -> Any:
    """What is stored for an array: itself, or the numbers behind a random key."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def is_key(leaf: Any) -> bool:
    """True for typed random keys."""
    return jnp.issubdtype(getattr(leaf, "dtype", np.dtype(np.float32)), jax.dtypes.prng_key)


def not_finite(tree: Any) -> list[str]:
    """Names of the arrays that hold a NaN or an infinity; they are looked at where they are."""
    numbers = {n: x for n, x in named(tree).items() if jnp.issubdtype(jnp.result_type(x), jnp.inexact)}
    flags = jax.device_get(_all_finite(numbers))
    return sorted(name for name, finite in flags.items() if not finite)


@jax.jit
def _all_finite(numbers: Named) -> Named:
    return {name: jnp.isfinite(x).all() for name, x in numbers.items()}


def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and placement of what is stored for an array (the default device, if it has none)."""
    stored = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(np.shape(stored), jnp.result_type(stored), sharding=sharding)


def unraw(leaf: Any, like: Any) -> Any:
    """The inverse of `raw`."""
    if not is_key(like):
        return leaf
    kinds = []
    jax.eval_shape(lambda key: kinds.append(jax.random.key_impl(key)), like)  # `like` may be abstract
    return jax.random.wrap_key_data(leaf, impl=kinds[0])


def check_same(found: Named, wanted: Named, where: str) -> None:
    """Compares names, shapes and dtypes. Nothing is ever cast or reshaped on the way in.

    Raises:
      CheckpointMismatch: lists what differs, by name.
    """
    problems = []
    for title, names in (
        ("missing in the checkpoint", wanted.keys() - found.keys()),
        ("only in the checkpoint", found.keys() - wanted.keys()),
    ):
        if names:
            problems.append(f"{title}: {_shorten(sorted(names))}")
    both = sorted(found.keys() & wanted.keys())
    shapes = [n for n in both if tuple(found[n].shape) != tuple(wanted[n].shape)]
    dtypes = [n for n in both if np.dtype(found[n].dtype) != np.dtype(wanted[n].dtype)]
    for title, names, attribute in (("other shapes", shapes, "shape"), ("other dtypes", dtypes, "dtype")):
        if names:
            shown = [(n, _show(found[n], attribute), _show(wanted[n], attribute)) for n in names]
            lines = [f"{n} ({have} instead of {want})" for n, have, want in shown]
            problems.append(f"{title}: {_shorten(lines)}")
    if problems:
        raise CheckpointMismatch(
            f"{where} does not match the model of this run; {'; '.join(problems)}. "
            "Use the config that the checkpoint was trained with (its metadata holds it), or another workdir."
        )


def _show(x: Any, attribute: str) -> str:
    return str(tuple(x.shape)) if attribute == "shape" else str(np.dtype(x.dtype))


def _shorten(lines: list[str]) -> str:
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return ", ".join(lines[:_SHOWN]) + more
