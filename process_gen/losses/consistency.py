"""A loss on what a turn must leave as it was; off in the configs.

B rows, S turn slots, I latent tokens of an image.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from process_gen.losses.registry import Term, register
from process_gen.losses.stock import flow_mse
from process_gen.models.autoencoder import to_patches
from process_gen.models.outputs import Outputs
from process_gen.trajectory.batch import Batch


@register("consistency_mse", stages=("sketch", "refine"))
def consistency_mse(outputs: Outputs, batch: Batch, labels: dict, key: jax.Array, *, stage: str) -> Term:
    """`flow_mse` on the tokens that the turn must leave as they were.

    Most of a turn's work is to keep what earlier turns drew. The paper asks for
    spatial consistency of visual states and gives no formula; this weighting is
    our choice: the tokens whose pixels in the target are those of the visual state
    before the turn, which is not blank there. Latents could not tell: an
    autoencoder's depend on the whole image, and may be drawn anew for each.
    """
    term = flow_mse(outputs, batch, labels, key, stage=stage)
    return term._replace(weights=term.weights * unchanged(batch, term.values.shape[-1])[:, :, None])


SAME = 4.0
"""Mean difference, in levels of 255, up to which pixels count as the same: files and editors that decode an
image anew do not give back its last bits."""


def unchanged(batch: Batch, tokens: int) -> jax.Array:
    """[B, S, I] bool: the latent tokens, `tokens` of an image, whose pixels the turn leaves as they were.

    Compared are the image that the flow target shows and that of the turn before; a
    trajectory's first turn has none before it, and what is blank (of one grey) is
    not counted.
    """
    slots, (height, width) = batch.image.shape[1], batch.image.shape[2:4]
    side = math.isqrt(height * width // tokens)
    parts = to_patches(batch.image, side)
    source = jnp.clip(jnp.arange(slots)[None] + jnp.maximum(batch.target, 0), 0, slots - 1)
    target = jnp.take_along_axis(parts, source[:, :, None, None], axis=1)
    before = jnp.pad(parts, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
    difference = jnp.maximum(target, before) - jnp.minimum(target, before)  # of bytes: it stays in range
    same = jnp.mean(difference, axis=-1, dtype=jnp.float32) <= SAME
    return same & (before.max(-1) > before.min(-1)) & ~batch.is_first[:, :, None]
