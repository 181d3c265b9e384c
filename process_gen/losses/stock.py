"""The stock losses: cross-entropy on text, velocity regression on images.

A turn's slots belong to stages: the text before an image is a plan or a refine
instruction, the image a sketch or a refined one, by the kind of the turn; the text
after it is an inspection. So every loss is on for the slots of its stage alone.

B rows, S turn slots, T tokens of a slot, J noised copies, I latent tokens, C
channels of a latent token, H W height and width of an image.
"""

from __future__ import annotations

import math

import einops
import jax
import jax.numpy as jnp

from process_gen.losses.registry import Term, register
from process_gen.models.unroll import Outputs
from process_gen.trajectory.batch import PAD_ID, Batch
from process_gen.trajectory.controls import closing
from process_gen.trajectory.stages import Stage


def of_stage(batch: Batch, stage: str) -> jax.Array:
    """[B, S] bool: the turns that have a slot of a stage."""
    everyone = {Stage.INSPECT: batch.present, Stage.REFINE: batch.present & batch.refines}
    return everyone.get(Stage(stage), batch.present & ~batch.refines)


@register("text_cross_entropy")
def text_cross_entropy(outputs: Outputs, batch: Batch, labels: dict, key: jax.Array, *, stage: str) -> Term:
    """Next-token cross-entropy inside the text of a stage (paper, section 3: L_CE)."""
    del key
    slot = "after" if stage == Stage.INSPECT else "before"
    inside = (labels[slot] != PAD_ID) & ~closing(getattr(batch, f"{slot}_tokens"))
    weights = getattr(batch, f"{slot}_weight") * of_stage(batch, stage)
    return Term(outputs.cross_entropy(slot, labels), inside * weights[..., None])


@register("decision_cross_entropy")
def decision_cross_entropy(
    outputs: Outputs, batch: Batch, labels: dict, key: jax.Array, *, stage: str
) -> Term:
    """Cross-entropy of what opens next, at the tokens that close something.

    For `stage` plan: the prompt's end and the plan's; sketch: the draft's;
    inspect: the inspection's (refine, next step, or stop); refine: the
    instruction's and the corrected image's. Labels of flow targets' closing
    tokens (`noised_end`, as BAGEL's data has them) count where given.
    """
    del key
    parts = {
        Stage.PLAN: ("prompt_end", "before"),
        Stage.SKETCH: ("image_end", "noised_end"),
        Stage.INSPECT: ("after",),
        Stage.REFINE: ("before", "image_end", "noised_end"),
    }[Stage(stage)]
    values, weights, there = [], [], of_stage(batch, stage)
    for name in (name for name in parts if name in labels):
        weight = labels[name] != PAD_ID
        if name in ("before", "after"):
            weight &= closing(getattr(batch, f"{name}_tokens"))
        if name != "prompt_end":
            weight &= there.reshape(*there.shape, *(1,) * (weight.ndim - 2))
        values.append(outputs.cross_entropy(name, labels).reshape(-1))
        weights.append(weight.reshape(-1).astype(jnp.float32))
    return Term(jnp.concatenate(values), jnp.concatenate(weights))


@register("flow_mse")
def flow_mse(outputs: Outputs, batch: Batch, labels: dict, key: jax.Array, *, stage: str) -> Term:
    """(v_hat - v)^2, mean over the channels of a latent token (paper, section 3: L_MSE)."""
    del labels, key
    values = jnp.mean(jnp.square(outputs.velocity - outputs.target), axis=-1)
    weights = batch.image_weight * (outputs.has_target & of_stage(batch, stage))
    return Term(values, jnp.broadcast_to(weights[:, :, None, None], values.shape))


@register("consistency_mse")
def consistency_mse(outputs: Outputs, batch: Batch, labels: dict, key: jax.Array, *, stage: str) -> Term:
    """`flow_mse` on the tokens that the turn must leave as they were.

    Most of a turn's work is to keep what earlier turns drew. The paper asks for
    spatial consistency of visual states and gives no formula; this weighting is
    our choice: the tokens whose pixels in the target are those of the visual state
    before the turn, which is not blank there. Latents could not tell: an
    autoencoder's depend on the whole image, and may be drawn anew for each.
    """
    values, weights = flow_mse(outputs, batch, labels, key, stage=stage)
    return Term(values, weights * unchanged(batch, values.shape[-1])[:, :, None])


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
    parts = einops.rearrange(batch.image, "b s (r p) (c q) d -> b s (r c) (p q d)", p=side, q=side)
    source = jnp.clip(jnp.arange(slots)[None] + jnp.maximum(batch.target, 0), 0, slots - 1)
    target = jnp.take_along_axis(parts, source[:, :, None, None], axis=1)
    before = jnp.pad(parts, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
    difference = jnp.maximum(target, before) - jnp.minimum(target, before)  # of bytes: it stays in range
    same = jnp.mean(difference, axis=-1, dtype=jnp.float32) <= SAME
    return same & (before.max(-1) > before.min(-1)) & ~batch.is_first[:, :, None]
