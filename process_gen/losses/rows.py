"""A row of the table of losses: reads it from a config, and checks what its loss returns.

The weight of a row may change with the step:

    weight=0.5                                                            the same at every step
    weight=dict(kind="linear", start=0.0, end=1.0, begin=0, until=500)    in a straight line between two steps
    weight=dict(kind="steps", at=((0, 0.0), (500, 1.0)))                  from each of those steps on

Steps are batches seen before the one that is weighed: the first batch has step 0.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from process_gen.common.names import check_name
from process_gen.losses.registry import STAGES, Term, check_network, get_loss
from process_gen.models.outputs import LossError

_FIELDS = ("loss", "stage", "weight")
KINDS: dict[str, tuple[str, ...]] = {"linear": ("start", "end", "begin", "until"), "steps": ("at",)}
"""Kinds of schedules, and the fields of each."""


class Weight(NamedTuple):
    """A weight over steps: `values[i]` at `steps[i]`; in between linear, or the value before."""

    values: tuple[float, ...]
    steps: tuple[int, ...] = (0,)
    linear: bool = False

    @property
    def constant(self) -> bool:
        """Whether it is the same at every step."""
        return len(self.values) == 1

    @property
    def on(self) -> bool:
        """Whether it is other than 0 at some step."""
        return any(self.values)

    def at(self, step: jax.Array | int) -> jax.Array | float:
        """The weight at a step, []."""
        if self.constant:
            return self.values[0]
        values, steps = jnp.asarray(self.values, jnp.float32), jnp.asarray(self.steps)
        if self.linear:
            return jnp.interp(jnp.asarray(step, jnp.float32), steps.astype(jnp.float32), values)
        return values[jnp.maximum(jnp.sum(step >= steps) - 1, 0)]


def weight_of(where: str, weight: Any) -> Weight:
    """Reads a weight of the config; errors call it `where`.

    Raises:
      ValueError: it is neither a number nor a valid schedule.
    """
    if not isinstance(weight, Mapping):
        return Weight((_number(where, weight),))
    kind = check_name(weight.get("kind"), KINDS, f"kind of schedule in {where}:")
    fields = KINDS[kind]
    if set(weight) != {"kind", *fields}:
        raise ValueError(f"{where}: a schedule of kind {kind!r} has {', '.join(fields)}, got {dict(weight)}")
    if kind == "linear":
        pairs = [(weight["begin"], weight["start"]), (weight["until"], weight["end"])]
    else:
        pairs = weight["at"]
    try:
        steps, values = zip(*((int(step), value) for step, value in pairs), strict=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: steps and weights are numbers, got {dict(weight)}") from error
    if any(a >= b for a, b in zip(steps, steps[1:], strict=False)) or steps[0] < 0:
        raise ValueError(f"{where}: the steps of a schedule rise, from 0 on, got {list(steps)}")
    return Weight(tuple(_number(where, value) for value in values), steps, kind == "linear")


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(
            f"{where} is {value!r}: a weight is a Python number from 0 on, or a schedule of kind "
            f"{' or '.join(KINDS)}"
        )
    return float(value)


class Row(NamedTuple):
    """One line of the table.

    Attributes:
      name, loss, stage, weight, pool: see `table`.
      options: the other fields, which are options of its loss.
    """

    name: str
    loss: str
    stage: str
    weight: Weight
    pool: str
    options: dict[str, Any]


def checked(row: Row, term: Any, slots: tuple[int, ...]) -> Term:
    """Returns the term of a row as arrays; LossError unless they are [B, S, ...], `slots` being (B, S)."""
    where = f"config.losses.{row.name}, loss {row.loss!r}"
    if not isinstance(term, tuple) or len(term) not in (2, 3):
        raise LossError(f"{where} returned {type(term).__name__}: return losses.Term(values, weights)")
    term = Term(*term)
    values, weights = (jnp.shape(x) for x in term[:2])
    if values != weights or values[:2] != slots:
        raise LossError(
            f"{where} returned values of shape {list(values)} and weights of shape {list(weights)}: both are "
            f"[B, S, ...] = [{slots[0]}, {slots[1]}, ...] and alike, not reduced; jnp.broadcast_to makes "
            "weights as large as values"
        )
    for name, metric in term.metrics.items():
        if jnp.ndim(metric) > len(weights) or any(
            a not in (1, b) for a, b in zip(jnp.shape(metric)[::-1], weights[::-1], strict=False)
        ):
            raise LossError(
                f"{where}: metric {name!r} of shape {list(jnp.shape(metric))} does not broadcast to that of "
                f"the weights, {list(weights)}"
            )
    metrics = {name: jnp.asarray(metric) for name, metric in term.metrics.items()}
    return Term(jnp.asarray(term.values), jnp.asarray(term.weights), metrics)


def row_of(name: str, fields: Mapping[str, Any]) -> Row:
    """Reads a row of the config.

    Raises:
      KeyError: a loss or a network that is not registered; names the nearest.
      ValueError: fields that are missing, unknown or invalid.
    """
    where = f"config.losses.{name}"
    if "/" in name or "@" in name:
        raise ValueError(f"{where}: the name of a row has no / and no @, which stand in names of the log")
    missing = [field for field in _FIELDS if field not in fields]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}; a row has {', '.join(_FIELDS)}")
    loss = get_loss(fields["loss"])
    options = {key: value for key, value in fields.items() if key not in (*_FIELDS, "pool")}
    for option, value in options.items():
        if option in inspect.signature(loss.function).parameters and option not in loss.options:
            raise ValueError(
                f"{where}.{option}: the loss {fields['loss']!r} takes it positionally; options are "
                f"keyword-only, as in def f(outputs, batch, labels, key, *, stage, {option}=...)"
            )
        known = (*_FIELDS, "pool", *loss.options)
        check_name(option, known, f"field of {where}, loss {fields['loss']!r},")
        if not isinstance(value, (str, bool, int, float, tuple, list, Mapping, type(None))):
            raise ValueError(
                f"{where}.{option} is {value!r}: what stands in a config is kept with its checkpoints, so it "
                "is a number, a string or a list of those; a function belongs into the loss"
            )
    needs = [name for name, default in loss.options.items() if default is inspect.Parameter.empty]
    if needed := [name for name in needs if name not in options]:
        raise ValueError(f"{where} lacks {', '.join(needed)}, which the loss {fields['loss']!r} needs")
    stage = check_name(fields["stage"], STAGES, f"stage in {where}.stage,")
    if stage not in loss.stages:
        raise ValueError(
            f"{where}.stage is {stage!r}, the loss {fields['loss']!r} is for {', '.join(loss.stages)}"
        )
    for network in loss.networks_of(options):
        check_network(network)
    weight = weight_of(f"{where}.weight", fields["weight"])
    return Row(name, fields["loss"], stage, weight, fields.get("pool", ""), options)
