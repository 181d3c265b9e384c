"""Predict functions made from the teacher: what a perfect model, or a flawed one, would sample."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np

from process_gen.evaluation.benchmark import make_benchmark
from process_gen.scenes.grammar import read_request
from process_gen.scenes.graph import Scene, make_object
from process_gen.scenes.levels import get_level
from process_gen.scenes.render import render
from process_gen.scenes.teacher import baseline, teach
from process_gen.trajectory.sampled import SampledTrajectory
from process_gen.trajectory.stages import Mode, Trajectory, Turn

BENCHMARK = make_benchmark(per_group=6)
LEVEL = get_level("default")


def canvas(*things: str) -> np.ndarray:
    """Draws things such as "red circle b2" on the default level."""
    words = [thing.split() for thing in things]
    return render(
        Scene(tuple(make_object(LEVEL, shape, colour, cell) for colour, shape, cell in words)), LEVEL
    )


def sampled(trajectory: Trajectory, mode: Mode = Mode.PROCESS, seed: int = 0) -> SampledTrajectory:
    """A trajectory of the data as if a model had sampled it, 20 Euler steps an image."""
    turns = tuple(Turn(turn.image, turn.before, turn.after, turn.refines) for turn in trajectory.turns)
    return SampledTrajectory(
        trajectory.prompt, turns, mode=mode, seed=seed, sampling_steps=20 * len(turns), seconds=0.5
    )


def teacher(mode=Mode.PROCESS, spoil=lambda index, trajectory: trajectory, **options):
    """A predict function that answers with the teacher's trajectories, changed by `spoil`."""

    def predict(prompts, seeds):
        found = []
        for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            rng = np.random.default_rng(zlib.crc32(prompt.encode()))
            request = read_request(prompt)
            if mode is Mode.PROCESS:
                trajectory = teach(request, rng, "default", **options)
            else:
                trajectory = baseline(request, rng, "default", mode)
            found.append(spoil(index, sampled(trajectory, mode, seed)))
        return found

    return predict


def with_final_image(trajectory: SampledTrajectory, image: np.ndarray) -> SampledTrajectory:
    """The trajectory with another last draft and no correction of it."""
    *before, last = trajectory.steps
    kept = [turn for step in before for turn in step.turns]
    return dataclasses.replace(trajectory, turns=(*kept, dataclasses.replace(last.draft, image=image)))


def spoiled(*groups: str):
    """A predict function for `BENCHMARK` that leaves the canvas empty in some groups."""

    def spoil(index, trajectory):
        wrong = BENCHMARK.tasks[index].group in groups
        return with_final_image(trajectory, canvas()) if wrong else trajectory

    return teacher(spoil=spoil)
