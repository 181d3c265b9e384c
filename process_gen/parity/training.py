"""The packed row through the scanned step: hidden states, losses and gradients.

L tokens of the published row, D width, V values of a latent token.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.losses import LossTable
from process_gen.models.config import ModelConfig
from process_gen.models.unified import UnifiedModel
from process_gen.models.unroll import gathered, scan_steps
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
    golden: Golden, config: ModelConfig, params: Any, timestep_shift: float = 1.0
) -> tuple[dict[str, np.ndarray], Any]:
    """What the published program stores of the row, under its keys, and the gradients of the loss."""
    row = training_row(golden, config, timestep_shift)
    model = UnifiedModel(config, row.layout, golden.ids)
    table = published_losses(golden.setting("ce_weight"), golden.setting("mse_weight"))
    labels = {name: jnp.asarray(x) for name, x in row.labels.items()}

    def loss(params):
        end, steps, _, traced = scan_steps(model, params, row.batch, row.inputs, traced=True)
        outputs = gathered(model, params, end, steps, row.flows)
        sums, counts = table.terms(outputs, row.batch, labels, jax.random.key(0))
        values = {name: outputs.cross_entropy(name, labels) for name in {name for name, _ in row.targets}}
        error = jnp.square(outputs.velocity["sketch"] - outputs.target["sketch"])
        return table.total(sums, counts), (values, error, traced)

    compute = once(jax.value_and_grad(loss, has_aux=True))
    (total, aux), gradients = jax.device_get(compute(params))
    values, error, traced = aux
    answers = {
        "train_hidden": _hidden(row, traced),
        "train_position_ids": _ids(row, traced),
        "train_ce": np.array([values[name][at] for name, at in row.targets]),
        "train_mse": np.concatenate([error[0, s, 0] for s in row.noised] or [error[0, 0, 0, :0]]),
        "train_loss": total,
    }
    return answers, gradients


def _hidden(row: Row, traced: dict[str, Any]) -> np.ndarray:
    """Hidden states in the order of the published row, [L, D]."""
    both = {
        chunk: np.concatenate([trace["hidden"]["und"], *_latents(trace["hidden"])], axis=2)[0]
        for chunk, trace in traced.items()
    }
    return np.stack([both[chunk][i, at] for chunk, i, at in row.places])


def _latents(hidden: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [hidden["gen"]] if "gen" in hidden else []


def _ids(row: Row, traced: dict[str, Any]) -> np.ndarray:
    """Rotary ids in the order of the published row, [L]."""
    return np.array([traced[chunk]["ids"][0, i, at] for chunk, i, at in row.places])
