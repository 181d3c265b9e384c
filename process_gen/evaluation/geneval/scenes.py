"""The scenes world judged by GenEval's decision: the exact parser takes the place of the detector.

The verdict is that of `scenes.judge` wherever no two clauses of a prompt name one
shape, as in GenEval's six categories. Three things make it so. Scores are distinct,
since the decision depends on the order of equal ones. Every shape is excluded above
the number that was asked for, those that nobody asked for above none, and so is what
is unclear: GenEval itself passes an image with more than it asks for. And boxes are
the parser's own.

Where two clauses name one shape ("a red star left of a blue star"), they differ by
definition: GenEval judges each clause by the largest objects of its shape, the same
ones for both clauses, and the judge by any assignment of objects to clauses. Reasons
differ everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from process_gen.evaluation.geneval.decision import Detection, Verdict, judge, select
from process_gen.scenes.graph import UNCLEAR, Scene
from process_gen.scenes.levels import get_level
from process_gen.scenes.parse import parse
from process_gen.scenes.requests import Request


def scenes_metadata(request: Request) -> dict[str, Any]:
    """A request as a line of GenEval's metadata, with all that nobody asked for excluded.

    Stricter than GenEval, so a score by it is none of GenEval.
    """
    metadata = request.metadata()
    asked = {clause.shape for clause in request.clauses}
    rest = [shape for shape in (*get_level(request.level).shapes, UNCLEAR) if shape not in asked]
    metadata["exclude"] = [*metadata["exclude"], *({"class": shape, "count": 1} for shape in rest)]
    return metadata


def scenes_detections(scene: Scene) -> list[Detection]:
    """What is on a canvas, the largest first and then from the top, with scores of 1, 1 - 1/1024, ..."""
    things = sorted(scene.objects, key=lambda thing: (-thing.size, thing.y, thing.x))
    return [
        Detection(thing.shape if thing.clear else UNCLEAR, 1 - rank / 1024, thing.box, color=thing.colour)
        for rank, thing in enumerate(things)
    ]


def known_colors(cls: str, found: Sequence[Detection]) -> list[str]:
    """The colours that detections brought with them."""
    return [one.color or "" for one in found]


def judge_scene(request: Request, image_or_scene: np.ndarray | Scene) -> Verdict:
    """Judges an image of the request's level, [H, W, 3] uint8, or a scene."""
    scene = image_or_scene if isinstance(image_or_scene, Scene) else parse(image_or_scene, request.level)
    metadata = scenes_metadata(request)
    return judge(metadata, select(scenes_detections(scene), metadata["tag"]), known_colors)
