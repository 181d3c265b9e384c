"""The parts of the recipe that the paper gives to outside models, each implemented twice.

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


class RecipeError(ValueError):
    """A recipe that cannot work as it is written; the message names the key and says what to do."""


class Skip(Exception):
    """Raised for a candidate that becomes no sample; rejections are counted by this message.

    Attributes:
      detail: what is particular to this candidate.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.detail = detail


class Later(Skip):
    """Raised where a service has failed on a candidate; the next run tries it again."""


@dataclasses.dataclass(frozen=True)
class Opinion:
    """A judgement of a step.

    Attributes:
      ok: whether it is as it should be.
      words: agreement, or the analysis of what is wrong.
      correction: the corrective instruction; empty where nothing is wrong.
      state: in the scenes world the corrected scene, for `correct` and `finish`; None if it is not known.
    """

    ok: bool
    words: str
    correction: str = ""
    state: Any = None


class World(Protocol):
    """All parts together, by scenes or by services.

    Attributes:
      name: of the source in records.
      author: in records: `teacher` for scenes, `model` for services.
      workers: candidates that may be made in parallel.
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
        """Judges each step's texts against the full prompt, up to the first conflict. Raises Skip.

        The steps are drafts with plans. What is not drawn yet is no conflict.
        """

    def draft(self, prompt: str, plan: Plan, image: np.ndarray, rng: Generator) -> Opinion:
        """Judges a draft against the plan that it carries out. Raises Skip."""

    def complete(self, prompt: str, image: np.ndarray) -> bool:
        """Whether an image is what the prompt asks for. Raises Skip."""

    def correct(self, prompt: str, opinion: Opinion, image: np.ndarray) -> np.ndarray:
        """The image with a correction carried out. Raises Skip where that cannot be done."""

    def finish(self, prompt: str, opinion: Opinion, image: np.ndarray, rng: Generator) -> list[Turn]:
        """The turns that add what is missing after a correction; none where nothing is. Raises Skip."""

    def planted(self, prompt: str, rng: Generator, wrong: bool, in_plan: bool) -> list[Turn]:
        """A trajectory with planted errors that are corrected if `wrong`, else without any. Raises Skip.

        An error is a plan that contradicts the prompt (`in_plan`), or an image that does not show its plan.
        """

    def close(self) -> None:
        """Ends candidates in progress as soon as possible; the next run makes them again."""
