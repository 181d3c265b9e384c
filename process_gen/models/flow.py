"""Rectified flow: the one convention, stated once.

    x_t = (1 - t) x + t eps        t = 0 is the image, t = 1 is noise
    v   = eps - x = (x_t - x) / t  the velocity, from data to noise

(BAGEL, arXiv 2505.14683; the paper writes the same flow with t reversed.)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

Array = jax.Array | np.ndarray
Times = Float[Array, "*T"]

MIN_T = 0.05
"""Smallest divisor t of a clean-image prediction; bounds the weight 1 / t^2 of its error in the loss."""


def shift_time(t: Times, shift: float) -> Times:
    """Moves timesteps towards noise: shift t / (1 + (shift - 1) t)."""
    return shift * t / (1 + (shift - 1) * t)


def sample_time(
    key: jax.Array, shape: tuple[int, ...], mean: float, std: float, shift: float
) -> Float[jax.Array, "*T"]:
    """Logit-normal timesteps in (0, 1), float32."""
    return shift_time(jax.nn.sigmoid(mean + std * jax.random.normal(key, shape)), shift)


def add_noise(
    x: Float[Array, "*X"], noise: Float[Array, "*X"], t: Float[Array, "*T"] | np.floating
) -> Float[Array, "*X"]:
    """x_t; the axes T of `t` are the leading ones of X."""
    t = t.reshape(t.shape + (1,) * (x.ndim - t.ndim))
    return (1 - t) * x + t * noise


def velocity_from_clean(
    x_t: Float[jax.Array, "*X"], clean: Float[jax.Array, "*X"], t: Float[jax.Array, "*T"]
) -> Float[jax.Array, "*X"]:
    """The velocity that follows from a predicted clean image."""
    t = t.reshape(t.shape + (1,) * (x_t.ndim - t.ndim))
    return (x_t - clean) / jnp.maximum(t, MIN_T)
