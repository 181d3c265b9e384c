"""Trajectories that are longer than a row, in parts that fit one."""

from __future__ import annotations

import dataclasses

import numpy as np

from process_gen.data.encode import encode_trajectory
from process_gen.data.tokenizers import Tokenizer
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Trajectory


def encode_parts(
    tokenizer: Tokenizer, layout: Layout, split: bool, trajectory: Trajectory
) -> list[dict[str, np.ndarray]]:
    """The arrays of a trajectory, or its parts where it is to be `split`; raises as `encode_trajectory`."""
    parts = split_trajectory(trajectory, layout) if split else [trajectory]
    return [encode_trajectory(tokenizer, layout, part) for part in parts]


def split_trajectory(trajectory: Trajectory, layout: Layout) -> list[Trajectory]:
    """A trajectory in parts that fit a row; alone where it fits already, or cannot be split.

    It can where the layout's context is `step` or `last`: a step sees nothing of those before the last one
    then. A part begins with the step before it, which is given and has no losses. What follows the last
    turn of a part but the last one stands in no row, so nothing learns to stop there (`Trajectory.ends`).
    """
    if len(trajectory.turns) <= layout.turns or layout.context == "full":
        return [trajectory]
    steps, parts, start = trajectory.steps, [], 0
    while start < len(steps):
        given = steps[start - 1 : start] if start else ()
        turns, stop = [turn for step in given for turn in step.turns], start
        while stop < len(steps) and len(turns) + len(steps[stop].turns) <= layout.turns:
            turns += steps[stop].turns
            stop += 1
        if stop == start:  # a step and the one before it do not fit one row
            return [trajectory]
        parts.append((len(given) and len(given[0].turns), turns))
        start = stop
    found, done = [], 0
    for given, turns in parts:
        first = done - given
        done = first + len(turns)
        latents = trajectory.latents
        if latents is not None:
            latents = {**latents, "image": latents["image"][first:done]}
        found.append(
            dataclasses.replace(
                trajectory,
                turns=tuple(turns),
                context_turns=given,
                latents=latents,
                ends=done == len(trajectory.turns),
            )
        )
    return found
