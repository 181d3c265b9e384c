"""Flattens states to named arrays, the one layout on disk, and compares names and shapes.

A state is a dataclass or a dict whose top-level fields become items that can be read on their own. Inside an
item every array has a name such as `backbone/layers/und/q_proj/kernel`, whatever Python classes held it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from process_gen.checkpoints.errors import CheckpointMismatch

FlatArrays = dict[str, Any]


def fields(state: Any) -> dict[str, Any]:
    """Top-level fields of a state, by name."""
    if isinstance(state, Mapping):
        return dict(state)
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def flatten(tree: Any) -> FlatArrays:
    """`{'a/b': array}` of a tree; an array alone is called `value`."""
    found: FlatArrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "value"
        if name in found:
            raise ValueError(f"two arrays share the name {name!r}")
        found[name] = leaf
    return found


def unflatten_like(tree: Any, arrays: FlatArrays) -> Any:
    """The arrays in the structure of `tree`."""
    return jax.tree.unflatten(jax.tree.structure(tree), [arrays[name] for name in flatten(tree)])


def unflatten(arrays: FlatArrays) -> dict[str, Any]:
    """`{'a/b': x}` as `{'a': {'b': x}}`."""
    return unflatten_dict(arrays, sep="/")


def key_to_data(leaf: Any) -> Any:
    """What is stored for an array: itself, or the key data of a typed random key."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def is_key(leaf: Any) -> bool:
    """True for typed random keys."""
    return jnp.issubdtype(getattr(leaf, "dtype", np.dtype(np.float32)), jax.dtypes.prng_key)


def not_finite(tree: Any) -> list[str]:
    """Names of the arrays that hold a NaN or an infinity; they are checked on the devices where they are."""
    numbers = {n: x for n, x in flatten(tree).items() if jnp.issubdtype(jnp.result_type(x), jnp.inexact)}
    flags = jax.device_get(_all_finite(numbers))
    return sorted(name for name, finite in flags.items() if not finite)


@jax.jit
def _all_finite(numbers: FlatArrays) -> FlatArrays:
    return {name: jnp.isfinite(x).all() for name, x in numbers.items()}


def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and placement of what is stored for an array (the default device, if it has none)."""
    stored = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(np.shape(stored), jnp.result_type(stored), sharding=sharding)


def data_to_key(leaf: Any, like: Any) -> Any:
    """The inverse of `key_to_data`."""
    if not is_key(like):
        return leaf
    kinds = []
    jax.eval_shape(lambda key: kinds.append(jax.random.key_impl(key)), like)  # `like` may be abstract
    return jax.random.wrap_key_data(leaf, impl=kinds[0])


def check(
    found: Mapping[str, Any], wanted: Mapping[str, Any], what: str, ignored: Sequence[str] = (), end: str = ""
) -> None:
    """Raises CheckpointMismatch, which names what is missing, unknown (but `ignored`), or of another shape.

    `found` and `wanted` are shapes by name, or whatever else is to be equal and can be shown; the message
    begins with `what` and ends with `end`; `ignored` are regular expressions of whole names.
    """
    unknown = sorted(
        name
        for name in found.keys() - wanted.keys()
        if not any(re.fullmatch(pattern, name) for pattern in ignored)
    )
    both = sorted(name for name in found.keys() & wanted.keys() if found[name] != wanted[name])
    problems = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unknown": unknown,
        "of another shape": [f"{name} {found[name]} instead of {wanted[name]}" for name in both],
    }
    if any(problems.values()):
        named = (f"{title}: {shorten(names)}" for title, names in problems.items() if names)
        raise CheckpointMismatch(f"{what}; {'; '.join(named)}{end}")


def shorten(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
