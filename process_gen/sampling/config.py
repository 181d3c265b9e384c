"""How to sample: one frozen dataclass, checked when it is built."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from process_gen.common.names import check_name
from process_gen.sampling.flow import RENORMS, FlowSpec
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Mode


class SamplerError(ValueError):
    """Settings that cannot work; the message names the key."""


class PromptError(ValueError):
    """A prompt that cannot be drawn; the message says why."""


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """The settings of a sampler.

    Attributes:
      flow_steps: Euler steps per image. The published model's N = 50 counts the
        points of linspace(1, 0, N), which is 49 Euler steps.
      time_shift: moves timesteps towards noise (`models.flow.shift_time`).
      text_scale: guidance by the newest text; 1 is off.
      image_scale: guidance by the images in context; 1 is off.
      interval: timesteps (low, high] at which guidance is on.
      renorm: what keeps guided velocities from growing: `global`, `channel`,
        `text_channel` or `none` (see `sampling.flow.guide`).
      renorm_min: the least factor that renormalisation may apply.
      temperature: of texts; 0 is greedy.
      decision_temperature: of what follows what; None is that of the texts.
      refine_threshold: a probability from which on a correction is made where one may
        be; None leaves it to the temperature, as all other decisions.
      answer_tokens: room for an answer (`Sampler.answer`), two brackets included.
      max_turns: a trajectory that has not ended by then is cut.
      max_flow_steps: Euler steps of a trajectory, all images together; 0 is no limit.
      mode: `process`, `plan_only` or `single_pass`.
      seed: of prompts that bring none.
    """

    flow_steps: int = 20
    time_shift: float = 1.0
    text_scale: float = 1.0
    image_scale: float = 1.0
    interval: tuple[float, float] = (0.4, 1.0)
    renorm: str = "global"
    renorm_min: float = 0.0
    temperature: float = 0.0
    decision_temperature: float | None = None
    refine_threshold: float | None = None
    answer_tokens: int = 128
    max_turns: int = 8
    max_flow_steps: int = 0
    mode: Mode = Mode.PROCESS
    seed: int = 0

    def __post_init__(self):
        modes = [mode.value for mode in Mode]
        if self.mode not in modes:
            raise SamplerError(f"sampling.mode must be one of {', '.join(modes)}, got {self.mode!r}")
        object.__setattr__(self, "mode", Mode(self.mode))
        if isinstance(self.interval, list):
            object.__setattr__(self, "interval", tuple(self.interval))
        for key in ("flow_steps", "max_turns", "answer_tokens"):
            _check(key, getattr(self, key), "a whole number of at least 1", lambda x: _whole(x) and x >= 1)
        _check("time_shift", self.time_shift, "a number above 0", lambda x: _finite(x) and x > 0)
        for key in ("text_scale", "image_scale", "temperature"):
            _check(key, getattr(self, key), "a number of at least 0", _at_least_0)
        _check("interval", self.interval, "two numbers low < high", _is_interval)
        _check("renorm", self.renorm, f"one of {', '.join(RENORMS)}", lambda x: x in RENORMS)
        _check("renorm_min", self.renorm_min, "between 0 and 1", _is_share)
        if self.decision_temperature is not None:
            _check(
                "decision_temperature",
                self.decision_temperature,
                "None or a number of at least 0",
                _at_least_0,
            )
        if self.refine_threshold is not None:
            _check("refine_threshold", self.refine_threshold, "None or a probability", _is_share)
        least = self.flow_steps
        _check(
            "max_flow_steps",
            self.max_flow_steps,
            f"0, or at least the {least} steps of one image (sampling.flow_steps)",
            lambda x: _whole(x) and (x == 0 or x >= least),
        )
        _check("seed", self.seed, "a whole number in [0, 2^32)", lambda x: _whole(x) and 0 <= x < 2**32)

    @classmethod
    def of(cls, fields: Mapping[str, Any], **changes: Any) -> SamplerConfig:
        """From `config.sampling` and what is to differ from it.

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
        return FlowSpec(
            steps=self.flow_steps,
            shift=self.time_shift,
            text_scale=self.text_scale,
            image_scale=self.image_scale,
            interval=self.interval,
            renorm=self.renorm,
            renorm_min=self.renorm_min,
        )


def check_fits(layout: Layout, config: SamplerConfig) -> None:
    """Whether a model of such a layout can be sampled so.

    Raises:
      SamplerError: the message names the key.
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


def _whole(x: Any) -> bool:
    return isinstance(x, int)


def _finite(x: Any) -> bool:
    return isinstance(x, (int, float)) and math.isfinite(x)


def _at_least_0(x: Any) -> bool:
    return _finite(x) and x >= 0


def _is_share(x: Any) -> bool:
    return _finite(x) and 0 <= x <= 1


def _is_interval(x: Any) -> bool:
    return isinstance(x, tuple) and len(x) == 2 and all(map(_finite, x)) and x[0] < x[1]


def _check(key: str, value: Any, wanted: str, good: Any) -> None:
    if isinstance(value, bool) or not good(value):
        raise SamplerError(f"sampling.{key} must be {wanted}, got {value!r}")
