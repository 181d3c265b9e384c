"""Masks of what a turn of the scenes world leaves unchanged, from the scene graphs in the metadata."""

from __future__ import annotations

import dataclasses

import numpy as np

from process_gen.scenes.graph import Scene, scene_from_json
from process_gen.scenes.levels import Level, get_level
from process_gen.scenes.render import placed_mask
from process_gen.trajectory.stages import Trajectory, Turn

KEPT = "kept"
"""The name of the field in `config.data.fields`; its kind is `mask`."""


def with_kept(trajectory: Trajectory) -> Trajectory:
    """Returns a trajectory of the teacher with a mask `kept`, [height, width] uint8, in each turn.

    The mask is 0 in the square around each object that is added, removed or changed between the canvas before
    the turn and the image that its flow target shows. It is 255 elsewhere.

    Raises:
      KeyError: the metadata lack what the teacher records.
    """
    told = trajectory.metadata
    level = get_level(told["level"])
    turns: list[Turn] = []
    canvas = Scene(())
    notes = zip(trajectory.steps, told["scenes"], told["drafts"], told["mistakes"], strict=True)
    for step, right, drawn, mistake in notes:
        right = scene_from_json(right, level)
        drawn = right if drawn is None else scene_from_json(drawn, level)
        planned = mistake is not None and mistake["planned"]  # the draft shows what its wrong plan says
        changes = [(canvas, drawn if planned else right), *[(drawn, right)] * len(step.refines)]
        for turn, (before, after) in zip(step.turns, changes, strict=True):
            extra = {**turn.extra, KEPT: _same(before, after, level)}
            turns.append(dataclasses.replace(turn, extra=extra))
        canvas = right if step.refines else drawn
    return dataclasses.replace(trajectory, turns=tuple(turns))


def _same(before: Scene, after: Scene, level: Level) -> np.ndarray:
    kept = np.full((level.image_size, level.image_size), 255, np.uint8)
    for thing in {*before.objects} ^ {*after.objects}:
        x, y = round(thing.x), round(thing.y)
        kept[placed_mask(thing.shape, thing.size, x, y, level.image_size)[1]] = 0
    return kept
