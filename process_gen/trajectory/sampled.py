"""Sampled trajectories: a trajectory, and how it was sampled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from process_gen.trajectory.stages import Mode, Trajectory

Stopped = Literal["model", "cap"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SampledTrajectory(Trajectory):
    """A trajectory that a model sampled. Its texts may be anything: what does not parse is `Malformed`.

    Attributes:
      mode: how much of the process was asked for.
      seed: what the random key was made from.
      stopped: what ended it: the `model` or an external planner, or the `cap` on turns, steps or Euler
        steps.
      given: turns at its start that were given and not sampled (`Sampler.continue_from`).
      sampling_steps: Euler steps over all its sampled images.
      seconds: its share of the wall time of its batch.
      verdict: the judgement of the final image, if there is one:
        `{"ok": bool, "constraints": [{"text": str, "ok": bool, "reason": str}]}`
        and whatever else a judge has to say, JSON-like.
      doubts: probabilities of a correction, of the turns after which the model chose whether to make one;
        None where it never did.
    """

    mode: Mode = Mode.PROCESS
    seed: int = 0
    stopped: Stopped = "model"
    given: int = 0
    sampling_steps: int = 0
    seconds: float = 0.0
    verdict: Mapping[str, Any] | None = None
    doubts: tuple[float, ...] | None = None
