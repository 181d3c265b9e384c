"""Stage -> Step -> Trajectory: the one vocabulary of the project.

A trajectory draws a prompt the way people do: each step plans a stroke in
text, sketches it as an image, inspects the draft, and refines it only where
the inspection found a conflict (arXiv 2604.04746, section 3).
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

import numpy as np


class Stage(enum.StrEnum):
    """The four stages of a step, in the order in which they happen."""

    PLAN = "plan"
    SKETCH = "sketch"
    INSPECT = "inspect"
    REFINE = "refine"


class Mode(enum.StrEnum):
    """How much of the process a trajectory goes through.

    `PROCESS` has every stage. The other two are the baselines: `PLAN_ONLY` is
    one plan followed by one image, `SINGLE_PASS` one image straight from the
    prompt.
    """

    PROCESS = "process"
    PLAN_ONLY = "plan_only"
    SINGLE_PASS = "single_pass"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step sets out to do.

    Attributes:
      instruction: what this stroke adds or changes (`<ins>`).
      description: the whole scene as it should stand afterwards (`<des>`).
    """

    instruction: str
    description: str


@dataclasses.dataclass(frozen=True, eq=False)
class Refinement:
    """A correction: the instruction (`<refine>`) and the corrected image.

    Attributes:
      instruction: what to correct.
      image: [height, width, 3] uint8.
    """

    instruction: str
    image: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One pass through the four stages.

    Attributes:
      sketch: the draft, [height, width, 3] uint8.
      plan: absent (None) only in single-pass trajectories.
      inspect: what the inspection says of the draft; None where it was skipped.
      refine: the correction, None where none was needed.
      sketch_ok: whether the draft carries out its instruction. A wrong draft
        stands in the context but is never a target of the sketch loss: the
        target is then the refined image, or nothing where there is none.
      plan_ok: whether the plan serves the prompt. A wrong plan is followed by its
        draft and found out by the inspection, but its words are never a target.
    """

    sketch: np.ndarray
    plan: Plan | None = None
    inspect: str | None = None
    refine: Refinement | None = None
    sketch_ok: bool = True
    plan_ok: bool = True

    @property
    def image(self) -> np.ndarray:
        """The visual state that the step leaves, [height, width, 3] uint8."""
        return self.sketch if self.refine is None else self.refine.image


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectory:
    """A prompt, the steps that draw it, and where it came from.

    Attributes:
      prompt: the text that the final image has to satisfy.
      steps: at least one.
      uid: names the trajectory in logs and error messages.
      metadata: what the source knows besides (JSON-like), e.g. the scene graph.
      prompt_image: an input image that the prompt shows after its text, [height, width, 3] uint8.
      instruction: what the prompt says after that image, e.g. how to edit it.
      latents: its images as latent tokens, where they were encoded ahead of time:
        `sketch`, `refined` [steps, N, V] and `prompt` [N, V], zeros where absent.
    """

    prompt: str
    steps: tuple[Step, ...]
    uid: str = ""
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prompt_image: np.ndarray | None = None
    instruction: str = ""
    latents: Mapping[str, np.ndarray] | None = None

    def __post_init__(self):
        if not self.steps:
            raise ValueError(f"trajectory {self.uid!r} has no steps")

    @property
    def image(self) -> np.ndarray:
        """The final image, [height, width, 3] uint8."""
        return self.steps[-1].image
