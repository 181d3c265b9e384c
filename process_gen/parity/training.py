"""The packed row, teacher-forced, in either order of the loops: hidden states, losses and gradients.

L tokens of the published row, D width, V values of a latent token.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.losses import LossTable
from process_gen.models.config import ModelConfig
from process_gen.models.content import prompt_content
from process_gen.models.unified import UnifiedModel
from process_gen.models.unroll import make_outputs, run_turns
from process_gen.parity.golden import Golden, once
from process_gen.parity.row import Row, training_row


def published_losses(ce_weight: float, mse_weight: float) -> LossTable:
    """The published loss as rows of the table: one mean over all texts, one over all flow targets."""
    text, image = dict(weight=ce_weight, pool="text"), dict(weight=mse_weight, pool="image")
    return LossTable(
        {
            "plan_text": dict(loss="text_cross_entropy", stage="plan", **text),
            "plan_decision": dict(loss="decision_cross_entropy", stage="plan", **text),
            "sketch_decision": dict(loss="decision_cross_entropy", stage="sketch", **text),
            "sketch_flow": dict(loss="flow_mse", stage="sketch", **image),
        }
    )


def training_answers(
    golden: Golden, config: ModelConfig, params: Any, timestep_shift: float = 1.0, order: str = "layers"
) -> tuple[dict[str, np.ndarray], Any]:
    """What the published program stores of the row, under its keys, and the gradients of the loss.

    Hidden states and positions of all tokens are there in the order `layers` alone: `scan` keeps
    those that losses read.
    """
    row = training_row(golden, config, timestep_shift)
    model = UnifiedModel(config, row.layout, golden.ids)
    table = published_losses(golden.setting("ce_weight"), golden.setting("mse_weight"))
    labels = {name: jnp.asarray(x) for name, x in row.labels.items()}

    def loss(params):
        end, turns, traced = _run(model, params, row, order)
        outputs = make_outputs(model, params, end, turns, row.flows)
        sums, counts = table.terms(outputs, row.batch, labels, jax.random.key(0))
        values = {name: outputs.cross_entropy(name, labels) for name in {name for name, _ in row.targets}}
        error = jnp.square(outputs.velocity - outputs.target)
        return table.total(sums, counts), (values, error, traced)

    compute = once(jax.value_and_grad(loss, has_aux=True))
    (total, aux), gradients = jax.device_get(compute(params))
    values, error, traced = aux
    answers = {
        "train_ce": np.array([values[name][at] for name, at in row.targets]),
        "train_mse": error[:, :, 0][row.flows["has_target"]].reshape(-1, error.shape[-1]),
        "train_loss": total,
    }
    if traced:
        answers["train_hidden"] = _of_tokens(row, {name: x["hidden"] for name, x in traced.items()})
        answers["train_position_ids"] = _of_tokens(row, {name: x["positions"] for name, x in traced.items()})
    return answers, gradients


def _run(
    model: UnifiedModel, params: Any, row: Row, order: str
) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    """The row through the model, and a trace of the tokens of its `prompt` and `turn` chunks."""
    batch = row.batch
    prompts = prompt_content(batch.prompt_tokens)
    if order != "layers":
        return *run_turns(model, params, batch, prompts, row.turns, order), {}
    rows = (prompts, row.turns, batch.prompt_index, batch.is_first, batch.refines)
    (end, turns), seen = model.apply({"params": params}, *rows, method="forward_rows", mutable=["trace"])
    return end, turns, {name: found for name, (found,) in seen["trace"].items()}


def _of_tokens(row: Row, traced: dict[str, dict[str, np.ndarray]]) -> np.ndarray:
    """What was traced by chunk and stream, [slots, tokens, ...], in the order of the published row."""
    whole = {
        chunk: np.concatenate([streams[name] for name in ("und", "gen") if name in streams], axis=1)
        for chunk, streams in traced.items()
    }
    return np.stack([whole[chunk][slot, at] for chunk, slot, at in row.places])
