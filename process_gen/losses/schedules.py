"""Weights of losses that change with the step.

    weight=0.5                                                            all along
    weight=dict(kind="linear", start=0.0, end=1.0, begin=0, until=500)    in a straight line between two steps
    weight=dict(kind="steps", at=((0, 0.0), (500, 1.0)))                  from each of those steps on

Steps are batches seen before the one that is weighed: the first batch has step 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from process_gen.common.names import check_name

KINDS: dict[str, tuple[str, ...]] = {
    "linear": ("start", "end", "begin", "until"),
    "steps": ("at",),
}
"""Kinds of schedules, and the fields of each."""


class Weight(NamedTuple):
    """A weight over steps: `values[i]` at `steps[i]`; between them a line, or that of the step before."""

    values: tuple[float, ...]
    steps: tuple[int, ...] = (0,)
    linear: bool = False

    @property
    def constant(self) -> bool:
        """Whether it is the same at every step."""
        return len(self.values) == 1

    @property
    def on(self) -> bool:
        """Whether it is above or below 0 at some step."""
        return any(self.values)

    def at(self, step: jax.Array | int | None) -> jax.Array | float:
        """[] at a step.

        Raises:
          ValueError: the weight is a schedule, and no step is given.
        """
        if self.constant:
            return self.values[0]
        if step is None:
            raise ValueError("the weight of a loss is a schedule: say at which step the total is")
        values, steps = jnp.asarray(self.values, jnp.float32), jnp.asarray(self.steps)
        if self.linear:
            return jnp.interp(jnp.asarray(step, jnp.float32), steps.astype(jnp.float32), values)
        return values[jnp.maximum(jnp.sum(step >= steps) - 1, 0)]


def weight_of(where: str, weight: Any) -> Weight:
    """A weight from a row of the config, named `where` in errors.

    Raises:
      ValueError: neither a number nor a schedule.
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
        steps, values = zip(*((int(step), _number(where, value)) for step, value in pairs), strict=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: steps and weights are numbers, got {dict(weight)}") from error
    if any(a >= b for a, b in zip(steps, steps[1:], strict=False)) or steps[0] < 0:
        raise ValueError(f"{where}: the steps of a schedule come one after the other, got {list(steps)}")
    return Weight(values, steps, kind == "linear")


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(
            f"{where} is {value!r}: a weight is a number or a schedule of kind {' or '.join(KINDS)}"
        )
    return float(value)
