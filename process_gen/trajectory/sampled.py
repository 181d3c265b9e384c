"""Trajectories as a model sampled them: a trajectory, and how it came to be."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from process_gen.trajectory.stages import Mode, Trajectory

Stopped = Literal["model", "cap"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SampledTrajectory(Trajectory):
    """What a model made of a prompt. Its texts may be anything: what does not parse is `Malformed`.

    Attributes:
      mode: how much of the process was asked for.
      seed: what the random key was made from.
      stopped: who ended it: the `model` itself or who plans in its place, or the `cap` on turns or Euler
        steps.
      given: turns at its start that were given and not sampled (`Sampler.continue_from`).
      sampling_steps: evaluations of the flow network over all its images.
      seconds: wall time of the batch divided by its rows.
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

    def __post_init__(self):
        super().__post_init__()
        if self.stopped not in ("model", "cap"):
            raise ValueError(f"stopped must be 'model' or 'cap', got {self.stopped!r}")
