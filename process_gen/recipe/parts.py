"""The parts of the recipe that the paper gives to outside models, each with two members.

part      scenes (exact, offline)                 service (over HTTP)
Grapher   reads the prompt by its grammar         chat model, JSON with a schema
Writer    the teacher's steps and words           schedule over the graph, chat model for the words
Painter   the renderer                            image generator and editor
Checker   parser and judge                        chat model that sees both images
Critic    parser, judge, a search for one repair  chat model
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.random import Generator

from process_gen.recipe.strokes import Stroke
from process_gen.trajectory.markup import Plan
from process_gen.trajectory.stages import Turn


class Skip(Exception):
    """A candidate that becomes no sample; the message is the reason that is counted, without details.

    Attributes:
      detail: what else there is to say of it.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.detail = detail


class Later(Skip):
    """A candidate that nobody could look at now; it is tried again by the next run."""


@dataclasses.dataclass(frozen=True)
class Opinion:
    """What is said of a step.

    Attributes:
      ok: whether it is as it should be.
      words: agreement, or the analysis of what is wrong.
      correction: the corrective instruction; empty where nothing is wrong.
      state: what a painter has to know to carry it out, and what follows it; None where that cannot be done.
    """

    ok: bool
    words: str
    correction: str = ""
    state: Any = None


class World(Protocol):
    """All parts: whoever makes the samples.

    Attributes:
      name: of the source in records.
      author: `teacher` of an exact world, `model` of services.
      workers: candidates that may be made side by side.
    """

    name: str
    author: str
    workers: int

    def strokes(self, prompt: str, rng: Generator, rewrites: float) -> list[Stroke]:
        """The steps; `rewrites` is the share of trajectories with modify, swap or remove. Raises Skip."""

    def paint(self, prompt: str, stroke: Stroke, before: np.ndarray | None, attempt: int) -> np.ndarray:
        """The image after a step, [H, W, 3] uint8; `before` is None at the first one. Raises Skip."""

    def check(
        self, prompt: str, stroke: Stroke, before: np.ndarray | None, image: np.ndarray, last: bool
    ) -> Opinion:
        """Whether an image shows its step, and at the last one the prompt. Raises Skip."""

    def plans(self, prompt: str, steps: Sequence[Turn], rng: Generator) -> list[Opinion]:
        """Each step's texts against the full prompt, up to the first conflict. Raises Skip.

        The steps are drafts with plans. What is not drawn yet is no conflict.
        """

    def draft(self, prompt: str, plan: Plan, image: np.ndarray, rng: Generator) -> Opinion:
        """A draft against the plan that it carries out. Raises Skip."""

    def complete(self, prompt: str, image: np.ndarray) -> bool:
        """Whether an image is what the prompt asks for. Raises Skip."""

    def correct(self, opinion: Opinion, image: np.ndarray) -> np.ndarray:
        """The image with a correction carried out. Raises Skip where that cannot be done."""

    def finish(
        self, prompt: str, opinion: Opinion, plan: Plan, image: np.ndarray, rng: Generator
    ) -> list[Turn]:
        """What draws the rest of a prompt after a correction; nothing where all is there. Raises Skip."""

    def planted(self, prompt: str, rng: Generator, wrong: bool, in_plan: bool) -> list[Turn]:
        """A trajectory with a draft that was made `wrong` and is corrected, or with none. Raises Skip.

        Its plan contradicts the prompt then (`in_plan`), or its image does not show its plan.
        """

    def close(self) -> None:
        """Ends what is under way as soon as it can, which is then nobody's loss: it is made again."""
