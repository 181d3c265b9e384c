"""Fixed positions: 2-D tables for image tokens and sinusoids for timesteps."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

Places = tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]

TIME_FEATURES = 256
TIME_MAX_PERIOD = 10000.0


def grid_places(grid: tuple[int, int]) -> Places:
    """Row and column of every token of a grid, [N] each, in row-major order."""
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    return rows, columns


def table_rows(grid: tuple[int, int], side: int) -> Int[np.ndarray, " N"]:
    """Indices [N] of the tokens of a grid into a flattened position table of `side` x `side` places."""
    rows, columns = grid_places(grid)
    return rows * side + columns


def _sincos(width: int, places: Int[np.ndarray, " N"]) -> Float[np.ndarray, "N {width}"]:
    """[N, width]: sines, then cosines, of p / 10000^(i / (width / 2))."""
    frequencies = 10000.0 ** (-np.arange(width // 2, dtype=np.float64) / (width / 2))
    angles = places[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_table(width: int, places: Places) -> Float[np.ndarray, "N {width}"]:
    """The fixed 2-D table at some places, [N, width] float32.

    The first half of the channels encodes the column, the second half the row
    (BAGEL's `latent_pos_embed`).
    """
    rows, columns = places
    table = np.concatenate([_sincos(width // 2, columns), _sincos(width // 2, rows)], axis=1)
    return table.astype(np.float32)


@functools.partial(jax.named_call, name="timestep_features")
def timestep_features(t: Float[jax.Array, "*T"]) -> Float[jax.Array, "*T 256"]:
    """Timesteps [...] to sinusoids [..., 256]: cosines first, then sines (BAGEL's timestep embedder)."""
    half = TIME_FEATURES // 2
    frequencies = jnp.exp(-jnp.log(TIME_MAX_PERIOD) * jnp.arange(half) / half)
    angles = t[..., None] * frequencies.reshape((1,) * t.ndim + (half,))
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
