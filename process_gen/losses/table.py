"""The table that says which losses are on, for which stage and with what weight.

A row of the config:  plan_text = {"loss": "text_cross_entropy", "stage": "plan", "weight": 1.0}

A weight is a number or a schedule over the steps (`rows`); a row of weight 0 is a metric. Rows with the same
`pool` share their count: the sum of each is divided by the number of targets of all of them. So BAGEL takes
one mean over all texts. Further fields are options of the loss.

B rows, S turn slots.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from process_gen.common.names import hint
from process_gen.losses.registry import STAGES, Term, fold_in_name, get_loss
from process_gen.losses.rows import Row, checked, row_of
from process_gen.models.outputs import LossError, Outputs
from process_gen.trajectory.batch import Batch


def mean_of(total: jax.Array, count: jax.Array) -> jax.Array:
    """A weighted sum over the sum of its weights; 0 where nothing is counted."""
    return total / jnp.where(count > 0, count, 1.0)


def _weighted(values: jax.Array, weights: jax.Array) -> jax.Array:
    """values * weights in float32; 0 where the weight is 0, whatever the value."""
    return jnp.where(weights > 0, values.astype(jnp.float32), 0.0) * weights


class LossTable:
    """Evaluates the losses of a config as sums and counts.

    In a mixture, whose `sources` are named in the order of `Batch.source`, each source also has its own sums
    and counts, `<name>@<source>`. A metric of a row has a sum, `metric/<row>/<name>`, and the row's count.

    Raises (when built):
      KeyError: a loss or a network that is not registered.
      ValueError: a row without its fields, or with an unknown stage, field or schedule.
    """

    def __init__(self, table: Mapping[str, Mapping[str, Any]], sources: Sequence[str] = ()):
        self.rows = tuple(row_of(name, fields) for name, fields in table.items() if fields)
        if not self.rows:
            raise ValueError("config.losses is empty: at least one loss must be on")
        self.sources = tuple(sources)

    def terms(self, outputs: Outputs, batch: Batch, labels: dict, key: jax.Array) -> tuple[dict, dict]:
        """Sums and counts of every loss, {name: []} each, float32; raises what `term` does."""
        sums, counts = {}, {}
        for row, term in self.each(outputs, batch, labels, key):
            weights = jax.lax.stop_gradient(term.weights.astype(jnp.float32))
            values = _weighted(term.values, weights)
            sums[row.name], counts[row.name] = jnp.sum(values), jnp.sum(weights)
            for name, metric in term.metrics.items():
                metric = jnp.broadcast_to(jax.lax.stop_gradient(metric), weights.shape)
                sums[f"metric/{row.name}/{name}"] = jnp.sum(_weighted(metric, weights))
            for index, source in enumerate(self.sources):
                of_source = (batch.source == index).reshape(*batch.source.shape, *(1,) * (values.ndim - 2))
                sums[f"{row.name}@{source}"] = jnp.sum(values * of_source)
                counts[f"{row.name}@{source}"] = jnp.sum(weights * of_source)
        return sums, counts

    def each(
        self, outputs: Outputs, batch: Batch, labels: dict, key: jax.Array
    ) -> Iterator[tuple[Row, Term]]:
        """Yields every row with its term, one after the other; raises what `term` does."""
        labels = outputs.labels(labels)
        outputs = outputs.with_nll(labels)
        for row in self.rows:
            yield row, self.term(row, outputs, batch, labels, key)

    def term(self, row: Row, outputs: Outputs, batch: Batch, labels: dict, key: jax.Array) -> Term:
        """Computes the loss of a row. Its random key depends on `key` and on the name of the row.

        Raises:
          LossError: the loss raises one, looks up what is missing, or returns no `Term` of [B, S, ...].
        """
        key, where = fold_in_name(key, row.name), f"config.losses.{row.name}, loss {row.loss!r}"
        try:
            term = get_loss(row.loss).function(outputs, batch, labels, key, stage=row.stage, **row.options)
        except LossError as error:
            raise LossError(f"{where}: {error}") from error
        except LookupError as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            line = f"line {frame.lineno} of {os.path.basename(frame.filename)}"
            problem = f"{type(error).__name__} {error} in {line}"
            if isinstance(error, KeyError):
                problem += f"; of labels and hidden states {hint(' '.join(map(str, error.args)), labels)}"
            raise LossError(f"{where}: {problem}") from error
        except jax.errors.UnexpectedTracerError as error:
            error.add_note(
                f"This happened in {where}. A loss keeps nothing from one call to the next: it can go by "
                "outputs.step, by a schedule of its weight, or by the network `reference`."
            )
            raise
        except Exception as error:
            error.add_note(f"This happened in {where}{_line_of(get_loss(row.loss).function, error)}.")
            raise
        return checked(row, term, batch.present.shape)

    @property
    def reads_pixels(self) -> bool:
        """Whether any loss reads the pixels of the batch; else latents are enough."""
        return any(get_loss(row.loss).pixels for row in self.rows)

    @property
    def networks(self) -> tuple[str, ...]:
        """The frozen networks that the losses read."""
        return tuple(sorted({n for row in self.rows for n in get_loss(row.loss).networks_of(row.options)}))

    def total(self, sums: dict, counts: dict, step: jax.Array | int = 0) -> jax.Array:
        """sum_i weight_i * sum_i / count_i; a loss without any target counts 0.

        `step`, the number of batches seen before this one, sets the weights that have a schedule.
        """
        weighted = (self._weighted_mean(row, sums, counts, step) for row in self.rows if row.weight.on)
        return sum(weighted, start=jnp.zeros(()))

    def _weighted_mean(self, row: Row, sums: dict, counts: dict, step: jax.Array | int) -> jax.Array:
        """What a row adds to the total: weight * sum / count, with the count of its pool if it has one."""
        pool = [row.name]
        if row.pool:  # a row of weight 0 is a metric, and no part of the mean
            pool = [other.name for other in self.rows if other.pool == row.pool and other.weight.on]
        return row.weight.at(step) * mean_of(sums[row.name], sum(counts[name] for name in pool))

    def metrics(self, sums: dict, counts: dict, step: jax.Array | int = 0) -> dict[str, jax.Array]:
        """Means, and what the stages add to the total.

        Returns:
          `loss/<name>` for every row, `metric/<name>/<metric>` for its metrics,
          `source/<source>/<name>` for every source of a mixture, `loss_weight/<name>` where the weight is a
          schedule, and `stage/<stage>`: the sum of the weighted losses of that stage.
        """

        def mean(name: str, row: str) -> jax.Array:
            return mean_of(sums[name], counts[row])

        metrics = {f"loss/{row.name}": mean(row.name, row.name) for row in self.rows}
        metrics |= {name: mean(name, name.split("/")[1]) for name in sums if name.startswith("metric/")}
        for source in self.sources:
            for row in self.rows:
                name = f"{row.name}@{source}"
                metrics[f"source/{source}/{row.name}"] = mean(name, name)
        for row in self.rows:
            if not row.weight.constant:
                metrics[f"loss_weight/{row.name}"] = row.weight.at(step)
        for stage in STAGES:
            rows = [row for row in self.rows if row.stage == stage and row.weight.on]
            if rows:
                metrics[f"stage/{stage}"] = sum(self._weighted_mean(row, sums, counts, step) for row in rows)
        return metrics


def _line_of(function: Any, error: Exception) -> str:
    """The line of a loss's own file from which an error came, for a message; "" where that cannot be told."""
    path = getattr(getattr(function, "__code__", None), "co_filename", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f", line {lines[-1]} of {os.path.basename(path)}" if lines else ""
