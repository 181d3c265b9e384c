"""A row of the table of losses: read from a config, and held against what its loss returns."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from process_gen.common.names import check_name
from process_gen.losses.registry import STAGES, Term, check_network, get_loss
from process_gen.losses.schedules import Weight, weight_of
from process_gen.models.outputs import LossError

_FIELDS = ("loss", "stage", "weight")


class Row(NamedTuple):
    """One line of the table.

    Attributes:
      name, loss, stage, weight, pool: see `table`.
      options: the fields that its loss alone has.
    """

    name: str
    loss: str
    stage: str
    weight: Weight
    pool: str
    options: dict[str, Any]


def checked(row: Row, term: Any, slots: tuple[int, ...]) -> Term:
    """The term of a row; LossError unless it is one of arrays [B, S, ...]."""
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
    """A row of the config.

    Raises:
      KeyError: a loss or a network that is not registered; names the nearest.
      ValueError: fields that lack, are unknown or cannot be.
    """
    where = f"config.losses.{name}"
    if "/" in name or "@" in name:
        raise ValueError(f"{where}: the name of a row has no / and no @, which stand in names of the log")
    missing = [field for field in _FIELDS if field not in fields]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}; a row has {', '.join(_FIELDS)}")
    loss = get_loss(fields["loss"])
    options = {key: value for key, value in fields.items() if key not in (*_FIELDS, "pool")}
    for option in options:
        known = (*_FIELDS, "pool", *loss.options)
        check_name(option, known, f"field of {where}, loss {fields['loss']!r},")
    needed = [
        p.name
        for p in inspect.signature(loss.function).parameters.values()
        if p.name in loss.options and p.default is p.empty and p.name not in options
    ]
    if needed:
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
