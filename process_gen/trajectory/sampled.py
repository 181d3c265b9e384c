"""Trajectories as a model sampled them: raw text and images, parsed on demand.

A model's text may be anything, so a sampled step keeps it as it came and
parses it when asked: the result is then the parsed value or a `Malformed`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from process_gen.trajectory import markup
from process_gen.trajectory.markup import Malformed
from process_gen.trajectory.stages import Mode, Plan, Refinement, Step, Trajectory

Stopped = Literal["model", "cap"]


@dataclasses.dataclass(frozen=True, eq=False)
class SampledStep:
    """One sampled pass through the stages; None stands for what did not happen.

    Attributes:
      plan_text: raw text of the plan, without the tokens around it.
      sketch: the draft, [height, width, 3] uint8.
      inspect_text: raw text of the inspection.
      refine_text: raw text of the refine instruction.
      refined: the corrected image, [height, width, 3] uint8.
    """

    plan_text: str | None = None
    sketch: np.ndarray | None = None
    inspect_text: str | None = None
    refine_text: str | None = None
    refined: np.ndarray | None = None

    def __post_init__(self):
        for name in ("sketch", "refined"):
            image = getattr(self, name)
            if image is not None and (image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8):
                raise ValueError(f"{name} must be [height, width, 3] uint8, got {image.shape} {image.dtype}")

    @property
    def plan(self) -> Plan | Malformed | None:
        return None if self.plan_text is None else markup.parse_plan(self.plan_text)

    @property
    def refine(self) -> str | Malformed | None:
        """The refine instruction."""
        return None if self.refine_text is None else markup.parse_refine(self.refine_text)

    @property
    def image(self) -> np.ndarray | None:
        """The visual state that the step leaves, None where it drew nothing."""
        return self.sketch if self.refined is None else self.refined

    def to_step(self) -> Step:
        """The step in the data's terms; what is malformed there becomes plain text or None.

        A malformed plan becomes None. A refine instruction is kept where a
        refined image was drawn after it, without the tokens that broke it.
        """
        if self.image is None:
            raise ValueError("a step without an image has no counterpart in the data")
        refinement = None
        if self.refined is not None and self.sketch is not None:
            instruction = self.refine
            if not isinstance(instruction, str):
                instruction = markup.SPECIAL_PATTERN.sub(" ", self.refine_text or "").strip()
            refinement = Refinement(instruction, self.refined)
        return Step(
            sketch=self.image if self.sketch is None else self.sketch,
            plan=self.plan if isinstance(self.plan, Plan) else None,
            inspect=self.inspect_text,
            refine=refinement,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class SampledTrajectory:
    """What a model made of a prompt.

    Attributes:
      prompt: as the user gave it.
      mode: how much of the process was asked for.
      seed: what the random key was made from.
      steps: in the order in which they happened.
      stopped: who ended it: the `model` itself or the `cap` on steps.
      sampling_steps: evaluations of the flow network over all its images.
      seconds: wall time of the batch divided by its rows.
      verdict: the judgement of the final image, if there is one:
        `{"ok": bool, "constraints": [{"text": str, "ok": bool, "reason": str}]}`
        and whatever else a judge has to say, JSON-like.
      uid: names it in reports; reports number those that have none.
      prompt_image: the input image of the prompt, [height, width, 3] uint8, if it has one.
    """

    prompt: str
    mode: Mode
    seed: int
    steps: tuple[SampledStep, ...]
    stopped: Stopped
    sampling_steps: int = 0
    seconds: float = 0.0
    verdict: Mapping[str, Any] | None = None
    uid: str = ""
    prompt_image: np.ndarray | None = None

    def __post_init__(self):
        if self.stopped not in ("model", "cap"):
            raise ValueError(f"stopped must be 'model' or 'cap', got {self.stopped!r}")

    @property
    def image(self) -> np.ndarray | None:
        """The final image, None where nothing was drawn."""
        drawn = (step.image for step in reversed(self.steps))
        return next((image for image in drawn if image is not None), None)

    def to_trajectory(self) -> Trajectory:
        """The trajectory in the data's terms, without the steps that drew nothing."""
        return Trajectory(
            prompt=self.prompt,
            steps=tuple(step.to_step() for step in self.steps if step.image is not None),
            uid=self.uid,
            prompt_image=self.prompt_image,
            metadata={
                "mode": self.mode.value,
                "seed": self.seed,
                "stopped": self.stopped,
                "sampling_steps": self.sampling_steps,
                "seconds": self.seconds,
                "verdict": None if self.verdict is None else dict(self.verdict),
            },
        )
