"""The stock losses: cross-entropy on text, velocity regression on images.

B rows, S step slots, T tokens of a slot, J noised copies, N latent tokens, V
values of a latent token.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from process_gen.losses.registry import Term, register
from process_gen.models.unroll import Outputs
from process_gen.trajectory.batch import PAD_ID, Batch
from process_gen.trajectory.controls import closing

SLOTS = {"plan": "plan_tokens", "inspect": "inspect_tokens", "refine": "refine_tokens"}


@register("text_cross_entropy")
def text_cross_entropy(outputs: Outputs, batch: Batch, labels: dict, key: jax.Array, *, stage: str) -> Term:
    """Next-token cross-entropy inside the text of a stage (paper, section 3: L_CE)."""
    del key
    values = outputs.cross_entropy(stage, labels)
    inside = (labels[stage] != PAD_ID) & ~closing(getattr(batch, SLOTS[stage]))
    return Term(values, inside.astype(jnp.float32))


@register("decision_cross_entropy")
def decision_cross_entropy(
    outputs: Outputs, batch: Batch, labels: dict, key: jax.Array, *, stage: str
) -> Term:
    """Cross-entropy of what opens next, at the tokens that close something.

    For `stage` plan: the prompt's end and the plan's; sketch: the draft's;
    inspect: the inspection's (refine, next step, or stop); refine: the
    instruction's and the corrected image's. Labels of flow targets' closing
    tokens (`sketch_noised_end`, as BAGEL's data has them) count where given.
    """
    del key
    parts = {
        "plan": ("prompt_end", "plan"),
        "sketch": ("sketch_end", "sketch_noised_end"),
        "inspect": ("inspect",),
        "refine": ("refine", "refined_end", "refined_noised_end"),
    }[stage]
    values, weights = [], []
    for name in parts:
        if name not in labels:
            continue
        value = outputs.cross_entropy(name, labels)
        weight = labels[name] != PAD_ID
        if name in SLOTS:
            weight &= closing(getattr(batch, SLOTS[name]))
        values.append(value.reshape(-1))
        weights.append(weight.reshape(-1).astype(jnp.float32))
    return Term(jnp.concatenate(values), jnp.concatenate(weights))


@register("flow_mse")
def flow_mse(outputs: Outputs, batch: Batch, labels: dict, key: jax.Array, *, stage: str) -> Term:
    """(v_hat - v)^2, mean over the values of a latent token (paper, section 3: L_MSE)."""
    del batch, labels, key
    values = jnp.mean(jnp.square(outputs.velocity[stage] - outputs.target[stage]), axis=-1)
    there = outputs.present[stage][:, :, None, None]
    return Term(values, jnp.broadcast_to(there, values.shape).astype(jnp.float32))


@register("consistency_mse")
def consistency_mse(outputs: Outputs, batch: Batch, labels: dict, key: jax.Array, *, stage: str) -> Term:
    """`flow_mse` on the tokens that the step must leave as they were.

    Most of a step's work is to keep what earlier steps drew. The paper asks for
    spatial consistency of visual states and gives no formula; this weighting is
    our choice: the tokens whose target equals the visual state before the step
    and is not blank.
    """
    before, target = outputs.images["before"], outputs.images[stage]
    kept = (jnp.abs(before - target).max(-1) < 1e-3) & (jnp.std(before, axis=-1) > 1e-3)
    values, there = flow_mse(outputs, batch, labels, key, stage=stage)
    return Term(values, there * kept[:, :, None])
