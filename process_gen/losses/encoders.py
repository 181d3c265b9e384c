"""Frozen image encoders that need no file.

N images, D = 32 features of a place.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from process_gen.losses.registry import register_network

_WIDTHS = (3, 32, 32, 32)
_STRIDES = (2, 2, 1)


def init_random_features(key: jax.Array) -> dict[str, jax.Array]:
    """Kernels [3, 3, in, out] of three convolutions, normal with the variance of He et al. (2015)."""
    keys = jax.random.split(key, len(_STRIDES))
    shapes = [(3, 3, *pair) for pair in itertools.pairwise(_WIDTHS)]
    return {
        f"layer{number}": jax.random.normal(key, shape) * (2 / (9 * shape[2])) ** 0.5
        for number, (key, shape) in enumerate(zip(keys, shapes, strict=True))
    }


def random_features(kernels: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
    """Images [N, H, W, 3] around [-1, 1] to features [N, H / 4, W / 4, D].

    Convolutions with random weights tell images apart much as trained ones do, texture and shape alike (He,
    Wang and Hopcroft, arXiv 1606.04801). A place sees 15 x 15 pixels, so what changes elsewhere leaves it
    as it is.
    """
    x = images.astype(jnp.float32)
    for number, stride in enumerate(_STRIDES):
        x, kernel = jax.nn.relu(x) if number else x, kernels[f"layer{number}"]
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    return x


register_network("random_features", init_random_features, random_features)
