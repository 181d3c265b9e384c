"""The losses of every stage, and the table that says which are on and with what weight.

A turn's slots belong to stages: the text before an image is a plan or a refine
instruction, the image a sketch or a refined one, by the kind of the turn; the text
after it is an inspection. So every loss is on for the slots of its stage alone.

A row of the config:  plan_text = {"loss": "text_cross_entropy", "stage": "plan", "weight": 1.0}

Rows that also name the same `pool` are divided by the targets of all of them
together: one mean over the texts of all stages, say, as BAGEL has it.

B rows, S turn slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from process_gen.losses.registry import Term, get_loss, register
from process_gen.models.unroll import Outputs
from process_gen.trajectory.batch import PAD_ID, Batch
from process_gen.trajectory.controls import closing
from process_gen.trajectory.stages import Stage, stage_bits


def of_stage(batch: Batch, stage: str) -> jax.Array:
    """[B, S] bool: the turns that have a slot of a stage, where their source supervises it."""
    there = batch.present & (batch.supervised & stage_bits({Stage(stage)}) > 0)
    everyone = {Stage.INSPECT: there, Stage.REFINE: there & batch.refines}
    return everyone.get(Stage(stage), there & ~batch.refines)


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
        value, weight = outputs.cross_entropy(name, labels), labels[name] != PAD_ID
        if name in ("before", "after"):
            weight &= closing(getattr(batch, f"{name}_tokens"))
        if name == "prompt_end":  # counted at the first turn of its trajectory
            value, weight = (jnp.take_along_axis(x, batch.prompt_index, axis=1) for x in (value, weight))
            weight &= batch.is_first
        values.append(value.reshape(*there.shape, -1))
        weights.append((weight.reshape(*there.shape, -1) & there[..., None]).astype(jnp.float32))
    return Term(jnp.concatenate(values, axis=-1), jnp.concatenate(weights, axis=-1))


@register("flow_mse")
def flow_mse(outputs: Outputs, batch: Batch, labels: dict, key: jax.Array, *, stage: str) -> Term:
    """(v_hat - v)^2, mean over the channels of a latent token (paper, section 3: L_MSE)."""
    del labels, key
    values = jnp.mean(jnp.square(outputs.velocity - outputs.target), axis=-1)
    weights = batch.image_weight * (outputs.has_target & of_stage(batch, stage))
    return Term(values, jnp.broadcast_to(weights[:, :, None, None], values.shape))


_FIELDS = ("loss", "stage", "weight")


class Row(NamedTuple):
    """One line of the table."""

    name: str
    loss: str
    stage: str
    weight: float
    pool: str = ""


class LossTable:
    """Evaluates the losses of a config as sums and counts.

    Of a mixture, which names its `sources` in the order of `Batch.source`, each source has sums and
    counts of its own besides, as `<name>@<source>`.

    Raises (when built):
      KeyError: a loss that is not registered.
      ValueError: a row without its fields, or with an unknown stage.
    """

    def __init__(self, table: Mapping[str, Mapping[str, Any]], sources: Sequence[str] = ()):
        self.rows = tuple(_row(name, fields) for name, fields in table.items() if fields)
        if not self.rows:
            raise ValueError("config.losses is empty: at least one loss must be on")
        self.sources = tuple(sources)

    def terms(self, outputs: Outputs, batch: Batch, labels: dict, key: jax.Array) -> tuple[dict, dict]:
        """Sums and counts of every loss, {name: []} each, float32."""
        sums, counts, labels = {}, {}, outputs.labels(labels)
        outputs = outputs.with_nll(labels)
        for i, row in enumerate(self.rows):
            loss_key = jax.random.fold_in(key, i)
            term = get_loss(row.loss)(outputs, batch, labels, loss_key, stage=row.stage)
            weights = term.weights.astype(jnp.float32)
            values = jnp.where(weights > 0, term.values.astype(jnp.float32), 0.0) * weights
            sums[row.name], counts[row.name] = jnp.sum(values), jnp.sum(weights)
            for place, source in enumerate(self.sources):
                own = (batch.source == place).reshape(*batch.source.shape, *(1,) * (values.ndim - 2))
                sums[f"{row.name}@{source}"] = jnp.sum(values * own)
                counts[f"{row.name}@{source}"] = jnp.sum(weights * own)
        return sums, counts

    def zeros(self) -> dict[str, jax.Array]:
        """Sums, or counts, of nothing."""
        names = [
            f"{row.name}{suffix}" for row in self.rows for suffix in ("", *(f"@{s}" for s in self.sources))
        ]
        return {name: jnp.zeros(()) for name in names}

    def total(self, sums: dict, counts: dict) -> jax.Array:
        """sum_i weight_i * sum_i / count_i; a loss without any target counts 0."""
        return sum(self._share(row, sums, counts) for row in self.rows)

    def _share(self, row: Row, sums: dict, counts: dict) -> jax.Array:
        """A row's part of the total: its sum is divided by its own targets, or by those of its pool."""
        pooled = [other.name for other in self.rows if row.pool and other.pool == row.pool] or [row.name]
        return row.weight * sums[row.name] / jnp.maximum(sum(counts[name] for name in pooled), 1.0)

    def metrics(self, sums: dict, counts: dict) -> dict[str, jax.Array]:
        """Means, and what the stages add to the total.

        Returns:
          `loss/<name>` for every row, `source/<source>/<name>` for every source of a mixture, and
          `stage/<stage>`: the sum of the weighted losses of that stage.
        """

        def mean(name: str) -> jax.Array:
            return sums[name] / jnp.maximum(counts[name], 1.0)

        metrics = {f"loss/{row.name}": mean(row.name) for row in self.rows}
        for source in self.sources:
            metrics |= {f"source/{source}/{row.name}": mean(f"{row.name}@{source}") for row in self.rows}
        for stage in Stage:
            if shares := [self._share(row, sums, counts) for row in self.rows if row.stage == stage.value]:
                metrics[f"stage/{stage.value}"] = sum(shares)
        return metrics


def _row(name: str, fields: Mapping[str, Any]) -> Row:
    missing = [field for field in _FIELDS if field not in fields]
    if missing:
        raise ValueError(f"config.losses.{name} lacks {', '.join(missing)}; a row has {', '.join(_FIELDS)}")
    if unknown := sorted(set(fields) - set(Row._fields[1:])):
        known = ", ".join(Row._fields[1:])
        raise ValueError(f"config.losses.{name} has unknown fields {unknown}; a row has {known}")
    get_loss(fields["loss"])
    stages = [stage.value for stage in Stage]
    if fields["stage"] not in stages:
        raise ValueError(
            f"config.losses.{name}.stage is {fields['stage']!r}; a stage is one of {', '.join(stages)}"
        )
    return Row(name, fields["loss"], fields["stage"], float(fields["weight"]), fields.get("pool", ""))
