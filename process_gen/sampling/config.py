"""How to sample: one frozen dataclass, checked when it is built."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from process_gen.common import ranges
from process_gen.common.names import check_name
from process_gen.sampling.flow import RENORMS, FlowSpec
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Mode


class SamplerError(ValueError):
    """Settings that cannot work; the message names the key."""


class PromptError(ValueError):
    """A prompt that cannot be drawn; the message says why."""


def _is_interval(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(map(ranges.is_number, value))
        and value[0] < value[1]
    )


RANGES = {
    "mode": ranges.one_of(*(mode.value for mode in Mode)),
    **dict.fromkeys(("flow_steps", "max_turns"), ranges.COUNT),
    "answer_tokens": ranges.Range(
        "a whole number of at least 3", lambda value: ranges.COUNT.holds(value) and value >= 3
    ),
    "time_shift": ranges.POSITIVE,
    **dict.fromkeys(("text_scale", "image_scale", "temperature"), ranges.NOT_NEGATIVE),
    "interval": ranges.Range("two numbers low < high", _is_interval),
    "renorm": ranges.one_of(*RENORMS),
    "renorm_min": ranges.SHARE,
    "decision_temperature": ranges.Range(
        "None or a number of at least 0", lambda value: value is None or ranges.NOT_NEGATIVE.holds(value)
    ),
    "refine_threshold": ranges.Range(
        "None or a probability", lambda value: value is None or ranges.SHARE.holds(value)
    ),
    "max_steps": ranges.COUNT_OR_OFF,
    "inspections": ranges.Range("True or False", lambda value: isinstance(value, bool)),
    "seed": ranges.SEED,
}
"""Allowed values of each setting, but for `max_flow_steps`, whose range depends on `flow_steps`."""


@dataclasses.dataclass(frozen=True)
class SamplerConfig(FlowSpec):
    """The settings of a sampler: those of `FlowSpec`, and

    Attributes:
      temperature: of texts; 0 is greedy.
      decision_temperature: of decisions on what follows; None takes `temperature`.
      refine_threshold: where a correction is allowed, it is made if its probability is at
        least this; None samples it as all other decisions.
      answer_tokens: longest answer (`Sampler.answer`), opening and closing token included.
      max_turns: a trajectory that has not ended by then is cut.
      max_steps: the budget of steps, corrections not counted; 0 is no limit.
      inspections: False leaves out the texts after images, and corrections with them.
      max_flow_steps: Euler steps of a trajectory, all images together; 0 is no limit.
      mode: `process`, `plan_only` or `single_pass`.
      seed: of prompts for which none is given.

    Raises:
      SamplerError: a value is not allowed.
    """

    temperature: float = 0.0
    decision_temperature: float | None = None
    refine_threshold: float | None = None
    answer_tokens: int = 128
    max_turns: int = 8
    max_steps: int = 0
    inspections: bool = True
    max_flow_steps: int = 0
    mode: Mode = Mode.PROCESS
    seed: int = 0

    def __post_init__(self):
        if isinstance(self.interval, list):
            object.__setattr__(self, "interval", tuple(self.interval))
        limit = ranges.Range(
            f"0, or at least the {self.flow_steps} steps of one image (sampling.flow_steps)",
            lambda value: ranges.COUNT_OR_OFF.holds(value) and (value == 0 or value >= self.flow_steps),
        )
        for key, allowed in {**RANGES, "max_flow_steps": limit}.items():
            if not allowed.holds(value := getattr(self, key)):
                raise SamplerError(f"sampling.{key} must be {allowed.text}, got {value!r}")
        object.__setattr__(self, "mode", Mode(self.mode))

    @classmethod
    def of(cls, fields: Mapping[str, Any], **changes: Any) -> SamplerConfig:
        """Takes the fields of `config.sampling`, and `changes` to them.

        Raises:
          SamplerError: unknown key (the message names the nearest), or a bad value.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        merged = {**fields, **changes}
        for key in merged:
            check_name(key, known, "key of config.sampling", SamplerError)
        return cls(**merged)

    @property
    def decides_at(self) -> float:
        """The temperature of decisions."""
        return self.temperature if self.decision_temperature is None else self.decision_temperature

    @property
    def flow(self) -> FlowSpec:
        """The part that flow integration is compiled for."""
        return FlowSpec(**{field.name: getattr(self, field.name) for field in dataclasses.fields(FlowSpec)})


def check_fits(layout: Layout, config: SamplerConfig) -> None:
    """Checks that a model of this layout can be sampled with these settings.

    Raises:
      SamplerError: it cannot; the message names the key.
    """
    if config.mode == Mode.PROCESS and layout.context == "full" and config.max_turns > layout.turns:
        raise SamplerError(
            f"sampling.max_turns is {config.max_turns}, but with layout.context = 'full' a trajectory "
            f"has room for layout.turns = {layout.turns}"
        )
    for slot in ("before", "after"):
        if 0 < (size := getattr(layout, slot)) < 3:
            raise SamplerError(f"layout.{slot} must be 0 or at least 3 to sample, got {size}")
    if config.mode == Mode.PLAN_ONLY and not layout.before:
        raise SamplerError("sampling.mode = 'plan_only' needs room for a plan: layout.before is 0")
