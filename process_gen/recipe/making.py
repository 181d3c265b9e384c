"""Makes one sample of a subset from one candidate: a prompt, or a trajectory that a model drew.

In subsets 2 and 3 drafts and their plans are inputs to judge, so their loss weights are 0, and wrong drafts
are no flow targets. The targets are the inspection, the corrective instruction and the corrected image. A
share of the corrections has no image and ends its trajectory (half of the paper's subset 2): there only the
instruction is a target.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.random import Generator

from process_gen.recipe.parts import Later, Opinion, Skip, World
from process_gen.recipe.strokes import Stroke
from process_gen.trajectory.markup import Plan
from process_gen.trajectory.sampled import SampledTrajectory
from process_gen.trajectory.stages import Turn, draft, refinement

CONSISTENT, CONFLICTING = "consistent", "conflicting"
ALIGNED, MISALIGNED = "aligned", "misaligned"
KINDS = {"conflict": (CONSISTENT, CONFLICTING), "alignment": (ALIGNED, MISALIGNED)}
"""By subset, its kinds of samples: without an error, and with one."""


@dataclasses.dataclass(frozen=True)
class Made:
    """A sample: its kind (`multi_turn` or of `KINDS`), and JSON-like facts for the statistics."""

    kind: str
    prompt: str
    turns: tuple[Turn, ...]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# -------------------------------------------------------------------- subset 1


def multi_turn(
    world: World, prompt: str, rng: Generator, *, rewrites: float, attempts: int, most_turns: int
) -> Made:
    """Subset 1: a prompt drawn step by step, with words of agreement after every step. Raises Skip.

    A share `rewrites` has a modify, swap or remove; `attempts` images of a step are tried.
    """
    strokes = world.strokes(prompt, rng, rewrites)
    _check_turns(len(strokes), most_turns)
    turns, filtered = draw(world, prompt, strokes, attempts=attempts)
    kinds = [list(stroke.kinds) for stroke in strokes]
    return Made("multi_turn", prompt, tuple(turns), facts={"kinds": kinds, "filtered": filtered})


def draw(
    world: World,
    prompt: str,
    strokes: Sequence[Stroke],
    before: np.ndarray | None = None,
    *,
    attempts: int = 1,
    ends: bool = True,
) -> tuple[list[Turn], int]:
    """Draws steps from the image `before` on; returns the turns, and how many images were not accepted.

    Of each step `attempts` images are tried. If the path `ends` there, the last one shows the whole prompt.
    Raises Skip where none is accepted.
    """
    turns: list[Turn] = []
    filtered = 0
    for number, stroke in enumerate(strokes, 1):
        for attempt in range(attempts):
            image = world.paint(prompt, stroke, before, attempt)
            opinion = world.check(prompt, stroke, before, image, ends and number == len(strokes))
            if opinion.ok:
                break
            filtered += 1
        else:
            raise Skip("no image of a step was accepted", f"step {number}: {opinion.words}")
        turns.append(draft(image, stroke.plan, opinion.words))
        before = image
    return turns, filtered


# ------------------------------------------------------------- planted errors


def planted(
    world: World, prompt: str, rng: Generator, *, kind: str, imageless: float, most_turns: int
) -> Made:
    """Subsets 2 and 3 from errors that are planted: in a plan, or in a draft that does not show its plan.

    With probability `imageless` the first correction has no image and ends the trajectory. Raises Skip.
    """
    turns = world.planted(prompt, rng, kind in (CONFLICTING, MISALIGNED), kind in KINDS["conflict"])
    if (first := _first_refine(turns)) < len(turns) and rng.random() < imageless:
        turns = [*turns[:first], refinement(None, turns[first].instruction)]
    return _given(kind, prompt, turns, most_turns, "planted")


# ---------------------------------------------------------------- self-sampled


def self_sampled(
    world: World,
    sampled: SampledTrajectory,
    rng: Generator,
    *,
    subset: str,
    imageless: float,
    most_turns: int,
) -> Made:
    """Subsets 2 and 3 from a trajectory that a model drew.

    In `conflict` its texts are judged against the full prompt, in `alignment` its drafts against their plans.
    Without an error it is kept whole, with words of agreement, if its image is what the prompt asks for.
    Else it is cut at the first error: there follow the analysis, the corrective instruction and, except in
    a share `imageless`, the corrected image and the steps that complete it. Raises Skip.
    """
    (right, wrong), prompt = KINDS[subset], sampled.prompt
    steps = _drawn(sampled)
    if subset == "conflict":
        opinions, as_said = world.plans(prompt, steps, rng), "no conflict in the words"
    else:
        opinions, as_said = _draft_opinions(world, prompt, steps, rng), "drafts as planned"
    judged = [
        draft(step.image, step.plan, opinion.words, image_ok=opinion.ok)
        for step, opinion in zip(steps, opinions, strict=False)
    ]
    if opinions[-1].ok:
        if not world.complete(prompt, steps[-1].image):
            raise Skip(f"{as_said}, and not what the prompt asks for")
        return _given(right, prompt, judged, most_turns)
    room = most_turns - len(judged)
    rest = _corrected(world, prompt, opinions[-1], judged[-1].image, rng, imageless, room)
    return _given(wrong, prompt, [*judged, *rest], most_turns)


def _drawn(sampled: SampledTrajectory) -> list[Turn]:
    """The drafts of a trajectory. Raises Skip where one has no readable plan, or was corrected already."""
    for step in sampled.steps:
        if not isinstance(step.plan, Plan):
            raise Skip("a step without a readable plan")
        if step.refines:
            raise Skip("a step that the model corrected itself")
    return [step.draft for step in sampled.steps]


def _draft_opinions(world: World, prompt: str, steps: Sequence[Turn], rng: Generator) -> list[Opinion]:
    """Judges each draft against its plan, up to the first that does not show it. Raises Skip."""
    opinions: list[Opinion] = []
    for step in steps:
        opinions.append(world.draft(prompt, step.plan, step.image, rng))
        if not opinions[-1].ok:
            break
    return opinions


def _corrected(
    world: World,
    prompt: str,
    opinion: Opinion,
    image: np.ndarray,
    rng: Generator,
    imageless: float,
    room: int,
) -> list[Turn]:
    """The correction of an image and what follows it; the words alone where no image of it can be drawn."""
    words = refinement(None, opinion.correction)
    if rng.random() < imageless:
        return [words]
    try:
        corrected = world.correct(prompt, opinion, image)
        rest = world.finish(prompt, opinion, corrected, rng)
    except Later:
        raise
    except Skip:
        return [words]
    drawn = [dataclasses.replace(words, image=corrected), *rest]
    return drawn if len(drawn) <= room else [words]


# ---------------------------------------------------------------------- shared


def _given(
    kind: str, prompt: str, turns: Sequence[Turn], most_turns: int, origin: str = "self-sampled"
) -> Made:
    """The sample whose plans and images before the first correction have loss weight 0: they are inputs.

    The correction and what follows keep their weights: the judged model did not draw them, and no other
    sample teaches how to continue from a corrected image.
    """
    _check_turns(len(turns), most_turns)
    first = _first_refine(turns)
    inputs = [dataclasses.replace(turn, before_weight=0.0, image_weight=0.0) for turn in turns[:first]]
    return Made(kind, prompt, (*inputs, *turns[first:]), {"origin": origin})


def _first_refine(turns: Sequence[Turn]) -> int:
    """The index of the first correction; the number of turns where there is none."""
    return next((i for i, turn in enumerate(turns) if turn.refines), len(turns))


def _check_turns(turns: int, most: int) -> None:
    if turns > most:
        raise Skip("more turns than a row has", f"{turns} turns")
