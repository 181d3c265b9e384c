"""Keeping what the model knew: its texts stay those of the model as the run began; off in the configs.

B rows, S turn slots, T tokens of a text slot.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from process_gen.losses.registry import Term, register
from process_gen.losses.stock import text_weights
from process_gen.models.outputs import REFERENCE, Outputs
from process_gen.trajectory.batch import Batch


@register("text_kl", pixels=False, stages=("plan", "inspect", "refine"), networks=(REFERENCE,))
def text_kl(outputs: Outputs, batch: Batch, labels: dict, key: jax.Array, *, stage: str) -> Term:
    """KL(reference, model) of the next token, at the text tokens of a stage.

    sum_v p_ref(v) (log p_ref(v) - log p(v)), the knowledge distillation of Li and Hoiem ("Learning
    without forgetting", arXiv 1606.09282) at temperature 1 with the model's own start as the teacher.
    Where it stands in the sequence is our choice: the tokens that `text_cross_entropy` counts.
    """
    del key
    slot, weights = text_weights(batch, labels, stage)

    def divergence(logits: jax.Array, wanted: jax.Array) -> jax.Array:
        log_p, log_q = jax.nn.log_softmax(wanted), jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)

    return Term(outputs.over_words(divergence, slot, outputs.network(REFERENCE)), weights)
