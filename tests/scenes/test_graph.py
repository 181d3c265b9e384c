from __future__ import annotations

import json

import pytest

from process_gen.scenes.graph import Scene, make_object, offsets, relations_between, scene_from_json
from process_gen.scenes.levels import get_level

LEVEL = get_level("default")


def _one(**fields) -> dict:
    return {"objects": [{"shape": "star", "colour": "red", "cell": "a1", **fields}]}


def test_json_round_trip():
    scene = Scene(
        (make_object(LEVEL, "circle", "red", "b2"), make_object(LEVEL, "ring", "black", "d4")),
    )
    assert scene_from_json(json.loads(json.dumps(scene.to_json())), LEVEL) == scene
    assert (
        scene_from_json({"objects": [{"shape": "circle", "colour": "red", "cell": "b2"}]}, LEVEL).objects
        == (scene.objects[:1])
    )


@pytest.mark.parametrize(
    "data, reason",
    [
        ([], "JSON object"),
        ({"objects": [3]}, "object 0: not a JSON object"),
        (_one(shape="dog"), "shape 'dog'"),
        (_one(shape=["star"]), "shape"),
        (_one(colour="pink"), "colour 'pink'"),
        (_one(cell="e9"), "no cell 'e9'"),
        (_one(cell=7), "no cell 7"),
        (_one(x="1", y=2), "x is not a number"),
        (_one(x=4, y=True), "y is not a number"),
        (_one(size=float("nan")), "size is not a number"),
        (_one(size=3), "size 3 is none of 7"),
        (_one(x=4), "both x and y"),
        (_one(x=30, y=4), "not in cell a1"),
        (_one(x=5, y=4), "in the middle"),
        ({"objects": [{"shape": "star", "colour": "red"}]}, "give a cell"),
        ({"objects": _one()["objects"] * 2}, "object 1: cell a1 is taken"),
    ],
)
def test_bad_scenes_say_why(data, reason: str):
    with pytest.raises(ValueError, match=reason):
        scene_from_json(data, LEVEL)


@pytest.mark.parametrize(
    "subject, target, expected",
    [
        ((0, 0, 10, 10), (100, 0, 110, 10), ("left of",)),
        ((100, 0, 110, 10), (0, 0, 10, 10), ("right of",)),
        ((0, 0, 10, 10), (0, 100, 10, 110), ("above",)),
        ((0, 100, 10, 110), (0, 0, 10, 10), ("below",)),
        ((0, 0, 10, 10), (100, 100, 110, 110), ("left of", "above")),
        ((0, 0, 10, 10), (1, 1, 11, 11), ()),
        ((0, 0, 10, 10), (0, 0, 10, 10), ()),
        # Less than a tenth of both widths apart: no relation.
        ((0, 0, 10, 10), (2, 0, 12, 10), ()),
        # dx = (4 - 2) / 4 is not more than a half: the line is strict.
        ((0, 0, 10, 10), (4, 0, 14, 10), ()),
        ((0, 0, 10, 10), (4.5, 0, 14.5, 10), ("left of",)),
    ],
)
def test_relations_follow_the_rule_of_geneval(subject, target, expected):
    assert relations_between(subject, target) == expected


def test_offsets_keep_the_raw_norm():
    # The numerator is revised, the norm is not: (8 - 1.4) / 8 for neighbouring cells.
    left, right = (make_object(LEVEL, "square", "red", cell).box for cell in ("a1", "b1"))
    assert offsets(left, right) == pytest.approx((-(8 - 1.4) / 8, 0))
