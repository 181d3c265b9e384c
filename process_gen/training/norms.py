"""Norms of a gradient or an update by part of the model: which part learns, and which one blows up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

_BY_MODULE = {
    "embedding": "embedding",
    "head": "head",
    "vit": "vit",
    "connector": "vit",
    "latent_in": "latent",
    "latent_out": "latent",
    "latent_positions": "latent",
    "time_in": "latent",
    "time_out": "latent",
}


def part_of(path: tuple[Any, ...]) -> str:
    """The part that a parameter belongs to, by the names along its path; `other` if its module is new."""
    names = [str(getattr(key, "key", key)) for key in path]
    if names[0] == "backbone":
        return "gen" if any(name == "gen" or name.endswith("_gen") for name in names) else "und"
    return _BY_MODULE.get(names[0], "other")


def by_part(name: str, tree: Mapping[str, Any]) -> dict[str, jax.Array]:
    """`name/part` -> Euclidean norm, [] float32, of each part of a tree shaped like the parameters.

    `und` and `gen` are the experts of the backbone, `vit` includes the connector, `latent` is the input and
    output of latents with their positions and timesteps.
    """
    squares: dict[str, jax.Array] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        part = part_of(path)
        squares[part] = squares.get(part, jnp.zeros(())) + jnp.sum(jnp.square(leaf.astype(jnp.float32)))
    return {f"{name}/{part}": jnp.sqrt(square) for part, square in sorted(squares.items())}
