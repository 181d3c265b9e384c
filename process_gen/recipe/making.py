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

from numpy.random import Generator

from process_gen.recipe.parts import Later, Opinion, Skip, World
from process_gen.trajectory.markup import Plan
from process_gen.trajectory.sampled import SampledTrajectory
from process_gen.trajectory.stages import Turn, draft, refinement

CONSISTENT, CONFLICTING = "consistent", "conflicting"
ALIGNED, MISALIGNED = "aligned", "misaligned"


@dataclasses.dataclass(frozen=True)
class Made:
    """A sample.

    Attributes:
      kind: `multi_turn` or one of the constants above; quotas count by it.
      prompt: of the trajectory.
      turns: of the trajectory.
      facts: metadata for statistics, JSON-like.
    """

    kind: str
    prompt: str
    turns: tuple[Turn, ...]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# -------------------------------------------------------------------- subset 1


def multi_turn(
    world: World, prompt: str, rng: Generator, *, rewrites: float, attempts: int, most_turns: int
) -> Made:
    """Subset 1: a prompt drawn step by step, with words of agreement after every step.

    Args:
      world: who draws.
      prompt: what to draw.
      rng: draws the path.
      rewrites: share of trajectories with modify, swap or remove.
      attempts: most images tried for a step.
      most_turns: steps, at most.

    Raises:
      Skip: the prompt becomes no sample.
    """
    strokes = world.strokes(prompt, rng, rewrites)
    _check_turns(len(strokes), most_turns)
    turns: list[Turn] = []
    filtered = 0
    for number, stroke in enumerate(strokes, 1):
        before = turns[-1].image if turns else None
        for attempt in range(attempts):
            image = world.paint(prompt, stroke, before, attempt)
            opinion = world.check(prompt, stroke, before, image, number == len(strokes))
            if opinion.ok:
                break
            filtered += 1
        else:
            raise Skip("no image of a step was accepted", f"step {number}: {opinion.words}")
        turns.append(draft(image, stroke.plan, opinion.words))
    kinds = [list(stroke.kinds) for stroke in strokes]
    return Made("multi_turn", prompt, tuple(turns), facts={"kinds": kinds, "filtered": filtered})


# ------------------------------------------------------------- planted errors


def planted(
    world: World, prompt: str, rng: Generator, *, kind: str, imageless: float, most_turns: int
) -> Made:
    """Subsets 2 and 3 from errors that are planted: in a plan, or in a draft that does not show its plan.

    Args:
      world: who draws, and plants.
      prompt: what to draw.
      rng: draws the path and the error.
      kind: conflicting (errors in plans), misaligned (errors in drafts), consistent or aligned (none).
      imageless: probability that the first correction has no image and ends the trajectory.
      most_turns: turns, at most.

    Raises:
      Skip: the prompt becomes no sample.
    """
    wrong, in_plan = kind in (CONFLICTING, MISALIGNED), kind in (CONSISTENT, CONFLICTING)
    turns = world.planted(prompt, rng, wrong, in_plan)
    first = next((i for i, turn in enumerate(turns) if turn.refines), None)
    if first is not None and rng.random() < imageless:
        said = turns[first].instruction
        assert isinstance(said, str), "instructions of the teacher are well-formed"
        turns = [*turns[:first], refinement(None, said)]
    return _made(kind, prompt, turns, most_turns, "planted")


# ---------------------------------------------------------------- self-sampled


def conflict(
    world: World, sampled: SampledTrajectory, rng: Generator, *, imageless: float, most_turns: int
) -> Made:
    """Subset 2 from a trajectory that a model drew: its texts are judged against the full prompt.

    Without a conflict it is kept whole, with words of agreement, if its image is what the prompt asks for.
    Else it is cut at the first conflict: there follow the analysis, the corrective instruction and, except in
    a share `imageless`, the corrected image and the steps that complete it.

    Raises:
      Skip: it becomes no sample.
    """
    steps, prompt = _drawn(sampled), sampled.prompt
    opinions = world.plans(prompt, steps, rng)
    if all(opinion.ok for opinion in opinions):
        if not world.complete(prompt, steps[-1].image):
            raise Skip("no conflict in the words, and not what the prompt asks for")
        return _made(CONSISTENT, prompt, _judged(steps, opinions), most_turns)
    turns = _corrected(world, prompt, steps, opinions, rng, imageless, most_turns)
    return _made(CONFLICTING, prompt, turns, most_turns)


def alignment(
    world: World, sampled: SampledTrajectory, rng: Generator, *, imageless: float, most_turns: int
) -> Made:
    """Subset 3 from a trajectory that a model drew: its drafts are judged against their plans.

    It is cut and corrected, as in `conflict`, at the first draft that does not show its plan; without one it
    is kept whole if its image is what the prompt asks for. Raises Skip.
    """
    steps, prompt = _drawn(sampled), sampled.prompt
    opinions: list[Opinion] = []
    for step in steps:
        opinions.append(world.draft(prompt, step.plan, step.image, rng))
        if not opinions[-1].ok:
            turns = _corrected(world, prompt, steps, opinions, rng, imageless, most_turns)
            return _made(MISALIGNED, prompt, turns, most_turns)
    if not world.complete(prompt, steps[-1].image):
        raise Skip("drafts as planned, and not what the prompt asks for")
    return _made(ALIGNED, prompt, _judged(steps, opinions), most_turns)


def _drawn(sampled: SampledTrajectory) -> list[Turn]:
    """The drafts of a trajectory. Raises Skip where one has no readable plan, or was corrected already."""
    for step in sampled.steps:
        if not isinstance(step.plan, Plan):
            raise Skip("a step without a readable plan")
        if step.refines:
            raise Skip("a step that the model corrected itself")
    return [step.draft for step in sampled.steps]


def _judged(steps: Sequence[Turn], opinions: Sequence[Opinion]) -> list[Turn]:
    """The first steps, one for each opinion, with its words as the inspection."""
    return [
        draft(step.image, step.plan, opinion.words, image_ok=opinion.ok)
        for step, opinion in zip(steps, opinions, strict=False)
    ]


def _corrected(
    world: World,
    prompt: str,
    steps: Sequence[Turn],
    opinions: Sequence[Opinion],
    rng: Generator,
    imageless: float,
    most_turns: int,
) -> list[Turn]:
    """The steps up to the first wrong one, then its correction, with an image and what follows or without."""
    turns, opinion, step = _judged(steps, opinions), opinions[-1], steps[len(opinions) - 1]
    words = [*turns, refinement(None, opinion.correction)]
    if rng.random() < imageless:
        return words
    try:
        image = world.correct(prompt, opinion, step.image)
        rest = world.finish(prompt, opinion, image, rng)
    except Later:
        raise
    except Skip:  # it cannot be drawn: a correction without an image
        return words
    drawn = [*turns, refinement(image, opinion.correction), *rest]
    return drawn if len(drawn) <= most_turns else words


def _made(
    kind: str, prompt: str, turns: Sequence[Turn], most_turns: int, origin: str = "self-sampled"
) -> Made:
    _check_turns(len(turns), most_turns)
    return Made(kind, prompt, given(turns), {"origin": origin})


# ---------------------------------------------------------------------- shared


def given(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Sets the loss weights of plans and images before the first correction to 0: they are inputs.

    The correction and what follows keep their weights: the judged model did not draw them, and no other
    sample teaches how to continue from a corrected image.
    """
    found, corrected = [], False
    for turn in turns:
        corrected |= turn.refines
        found.append(turn if corrected else dataclasses.replace(turn, before_weight=0.0, image_weight=0.0))
    return tuple(found)


def _check_turns(turns: int, most: int) -> None:
    if turns > most:
        raise Skip("more turns than a row has", f"{turns} turns")
