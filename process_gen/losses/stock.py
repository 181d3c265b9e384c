"""The losses of the method, by stage, and two on texts that are off in the configs: `text_kl` holds the model
near its start, `description_consistency` the description of a plan near the one before it.

Each slot of a turn belongs to a stage. In a draft turn the text before the image is a
plan and the image a sketch, in a refine turn both belong to the refinement; the text
after the image is an inspection. A loss counts the slots of its stage alone.

B rows, S turn slots.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from process_gen.common import ranges
from process_gen.common.names import check_name
from process_gen.losses.registry import STAGES, Term, register
from process_gen.models.outputs import REFERENCE, LossError, Outputs
from process_gen.trajectory.batch import PAD_ID, Batch
from process_gen.trajectory.controls import closing
from process_gen.trajectory.stages import Stage, stage_bits


def of_stage(batch: Batch, stage: str) -> jax.Array:
    """[B, S] bool: the turns that have a slot of a stage, if their source supervises that stage.

    Raises:
      LossError: there is no such stage.
    """
    check_name(stage, STAGES, "stage", LossError)
    there = batch.present & (batch.supervised & stage_bits({Stage(stage)}) > 0)
    everyone = {Stage.INSPECT: there, Stage.REFINE: there & batch.refines}
    return everyone.get(Stage(stage), there & ~batch.refines)


def target_weights(outputs: Outputs, batch: Batch, stage: str) -> jax.Array:
    """[B, S] float32, weights of the turns of a stage that have a flow target."""
    return batch.image_weight * (outputs.has_target & of_stage(batch, stage))


def same_trajectory(batch: Batch) -> jax.Array:
    """[B, S, S] bool: whether the slot of the last axis holds a turn of the other slot's trajectory."""
    return (batch.prompt_index[:, :, None] == batch.prompt_index[:, None]) & batch.present[:, None]


@register("text_cross_entropy", pixels=False, stages=("plan", "inspect", "refine"))
def text_cross_entropy(
    outputs: Outputs, batch: Batch, labels: dict, key: jax.Array, *, stage: str, smoothing: float = 0.0
) -> Term:
    """Next-token cross-entropy inside the text of a stage (paper, section 3: L_CE).

    With `smoothing` e, the target is 1 - e of the label and e of a uniform guess (Szegedy et al.,
    arXiv 1512.00567): (1 - e) (-log p(label)) + e mean_v (-log p(v)).
    """
    del key
    _in_range("smoothing", smoothing, ranges.SHARE)
    slot, weights = text_weights(batch, labels, stage)
    values = outputs.cross_entropy(slot, labels)
    if smoothing:
        uniform = outputs.over_words(lambda logits: -jnp.mean(jax.nn.log_softmax(logits), axis=-1), slot)
        values = (1 - smoothing) * values + smoothing * uniform
    return Term(values, weights)


def text_weights(batch: Batch, labels: dict, stage: str) -> tuple[str, jax.Array]:
    """The text slot of a stage, and its loss weights [B, S, T]: 0 where the token closes the text."""
    slot = "after" if stage == Stage.INSPECT else "before"
    inside = (labels[slot] != PAD_ID) & ~closing(getattr(batch, f"{slot}_tokens"))
    weights = getattr(batch, f"{slot}_weight") * of_stage(batch, stage)
    return slot, inside * weights[..., None]


@register("text_kl", pixels=False, stages=("plan", "inspect", "refine"), networks=(REFERENCE,))
def text_kl(outputs: Outputs, batch: Batch, labels: dict, key: jax.Array, *, stage: str) -> Term:
    """KL(reference, model) of the next token, at the text tokens of a stage.

    sum_v p_ref(v) (log p_ref(v) - log p(v)), the knowledge distillation of Li and Hoiem ("Learning
    without forgetting", arXiv 1606.09282) at temperature 1 with the model's own start as the teacher.
    Which tokens it counts is our choice: those of `text_cross_entropy`.
    """
    del key
    slot, weights = text_weights(batch, labels, stage)

    def divergence(logits: jax.Array, wanted: jax.Array) -> jax.Array:
        log_p, log_q = jax.nn.log_softmax(wanted), jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)

    return Term(outputs.over_words(divergence, slot, outputs.network(REFERENCE)), weights)


@register("description_consistency", pixels=False, stages=("plan",))
def description_consistency(
    outputs: Outputs, batch: Batch, labels: dict, key: jax.Array, *, stage: str
) -> Term:
    """-log p of the tokens that a description (`<des>`) repeats of the one before it (our choice).

    A step leaves most of the scene as it was, and so most of its description. This adds weight to those
    tokens, which `text_cross_entropy` counts too; with weight 0 it is a metric of them. See `repeated`.
    """
    del key
    slot, weights = text_weights(batch, labels, stage)
    kept = repeated(batch, outputs.ids.des, outputs.ids.des_end)
    return Term(outputs.cross_entropy(slot, labels), weights * kept)


def repeated(batch: Batch, des: int, des_end: int) -> jax.Array:
    """[B, S, T] bool: where the next token of a plan repeats its trajectory's description before.

    A token inside a description is a repetition if it and the two tokens before it also follow each other
    in that earlier description. `des` and `des_end` are the ids around a description.
    """
    tokens = batch.before_tokens
    opened, closed = (jnp.cumsum(tokens == token, axis=-1) for token in (des, des_end))
    said = (opened > closed) & (tokens != des)
    slots = jnp.arange(tokens.shape[1])
    earlier = same_trajectory(batch) & said.any(-1)[:, None] & (slots[None] < slots[:, None])[None]
    last = jnp.max(jnp.where(earlier, slots, -1), axis=-1)  # [B, S], -1 for none

    def of_last(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, jnp.maximum(last, 0)[..., None], axis=1)

    before = of_last(tokens)
    equal = tokens[..., :, None] == before[..., None, :]  # [B, S, T, T], of this turn and of the last one
    three = equal[..., :-2, :-2] & equal[..., 1:-1, 1:-1] & equal[..., 2:, 2:]
    found = (three & of_last(said)[..., None, 2:]).any(-1) & said[..., 2:] & (last >= 0)[..., None]
    return jnp.pad(found, ((0, 0), (0, 0), (1, 1)))[..., : tokens.shape[-1]]


DECISIONS = {
    Stage.PLAN: ("prompt_end", "before"),
    Stage.SKETCH: ("image_end", "noised_end"),
    Stage.INSPECT: ("after",),
    Stage.REFINE: ("before", "image_end", "noised_end"),
}
"""By stage, the hidden states of closing tokens, which predict what opens next."""


@register("decision_cross_entropy", pixels=False)
def decision_cross_entropy(
    outputs: Outputs,
    batch: Batch,
    labels: dict,
    key: jax.Array,
    *,
    stage: str,
    balance: float = 0.0,
    focal: float = 0.0,
) -> Term:
    """Cross-entropy of the token that opens what comes next, at closing tokens.

    For `stage` plan: the prompt's end and the plan's; sketch: the draft's;
    inspect: the inspection's (refine, next step, or stop); refine: the
    instruction's and the corrected image's. Labels of flow targets' closing
    tokens (`noised_end`, as BAGEL's data has them) count where given.

    With `focal` g, each value is multiplied by (1 - p)^g, p being that of its label (Lin et al., arXiv
    1708.02002). With `balance` b, each weight is multiplied by n^-b, n being how often its label
    occurs among those computed together, and rescaled to the same sum: at 1 each label counts as
    much as any other (our choice).
    """
    del key
    _in_range("balance", balance, ranges.NOT_NEGATIVE)
    _in_range("focal", focal, ranges.NOT_NEGATIVE)
    values, weights, wanted, there = [], [], [], of_stage(batch, stage)
    for name in (name for name in DECISIONS[Stage(stage)] if name in labels):
        value, label = outputs.cross_entropy(name, labels), labels[name]
        weight = label != PAD_ID
        if name in ("before", "after"):
            weight &= closing(getattr(batch, f"{name}_tokens"))
        if name == "prompt_end":  # counted at the first turn of its trajectory
            value, weight, label = (
                jnp.take_along_axis(x, batch.prompt_index, axis=1) for x in (value, weight, label)
            )
            weight &= batch.is_first
        values.append(value.reshape(*there.shape, -1))
        weights.append((weight.reshape(*there.shape, -1) & there[..., None]).astype(jnp.float32))
        wanted.append(label.reshape(*there.shape, -1))
    values, weights = jnp.concatenate(values, axis=-1), jnp.concatenate(weights, axis=-1)
    if focal:
        values = values * jnp.maximum(-jnp.expm1(-values), 1e-6) ** focal  # x^g has no gradient at 0 if g < 1
    if balance:
        weights = balanced(weights, jnp.concatenate(wanted, axis=-1), balance)
    return Term(values, weights)


def _in_range(option: str, value: Any, wanted: ranges.Range) -> None:
    if not wanted.holds(value):
        raise LossError(f"{option} must be {wanted.text}, got {value!r}")


def balanced(weights: jax.Array, labels: jax.Array, power: float) -> jax.Array:
    """Weights of 0 and 1 times n^-power, n being how often their label counts, scaled to the same sum."""
    flat, there = labels.reshape(-1), weights.reshape(-1)
    often = jnp.sum((flat[:, None] == flat[None, :]) * there[None, :], axis=1).reshape(weights.shape)
    scaled = weights * jnp.maximum(often, 1.0) ** -power
    return scaled * (jnp.sum(weights) / jnp.maximum(jnp.sum(scaled), 1e-9))


def _cosmap(t: jax.Array) -> jax.Array:
    """2 / (pi - 2 pi t + 2 pi t^2), largest at t = 1/2 (Esser et al., arXiv 2403.03206)."""
    return 2 / (math.pi * (1 - 2 * t + 2 * jnp.square(t)))


def _logit_normal(t: jax.Array) -> jax.Array:
    """The density of a standard logit-normal at t: weighs as drawing t from it would (arXiv 2403.03206)."""
    logit = jnp.log(t) - jnp.log1p(-t)
    return jnp.exp(-jnp.square(logit) / 2) / (math.sqrt(2 * math.pi) * t * (1 - t))


TIMESTEPS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "uniform": jnp.ones_like,
    "clean": jnp.square,  # (v_hat - v)^2 becomes the error of the clean estimate x_t - t v (our choice)
    "cosmap": _cosmap,
    "logit_normal": _logit_normal,
}
"""The weightings of `flow_mse` as functions of the timestep; t = 1 is noise."""


@register("flow_mse", pixels=False, stages=("sketch", "refine"))
def flow_mse(
    outputs: Outputs, batch: Batch, labels: dict, key: jax.Array, *, stage: str, timesteps: str = "uniform"
) -> Term:
    """(v_hat - v)^2, mean over the channels of a latent token (paper, section 3: L_MSE).

    `timesteps` names a function of t in `TIMESTEPS` that the values are multiplied by (else LossError); the
    mean is still over tokens.
    """
    del labels, key
    values = jnp.mean(jnp.square(outputs.velocity - outputs.target), axis=-1)
    if check_name(timesteps, TIMESTEPS, "weighting of timesteps", LossError) != "uniform":
        values = values * TIMESTEPS[timesteps](outputs.t)[..., None]
    weights = target_weights(outputs, batch, stage)
    return Term(values, jnp.broadcast_to(weights[:, :, None, None], values.shape))
