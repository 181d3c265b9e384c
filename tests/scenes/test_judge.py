from __future__ import annotations

import json

import numpy as np
import pytest

from process_gen.scenes import judge, read_request, render
from process_gen.scenes.graph import UNCLEAR, Scene, make_object
from process_gen.scenes.levels import get_level
from tests.scenes.making import scene

LEVEL = get_level("default")


@pytest.mark.parametrize(
    "prompt, things, failures",
    [
        ("a circle", ["red circle a1"], ()),
        ("a circle", [], ("count",)),
        ("a circle", ["red circle a1", "red circle b1"], ("count",)),
        ("a circle", ["red circle a1", "red star b1"], ("extra",)),
        ("a circle", ["red star b1"], ("count", "extra")),
        ("a red circle", ["blue circle a1"], ("colour",)),
        ("two red circles", ["red circle a1", "blue circle b1"], ("colour",)),
        ("two circles", ["red circle a1", "blue circle b4"], ()),
        ("three circles", ["red circle a1", "blue circle b4"], ("count",)),
        ("a circle and a star", ["red circle a1", "blue star b4"], ()),
        ("a circle left of a star", ["red circle a1", "blue star b1"], ()),
        ("a circle left of a star", ["red circle b1", "blue star a1"], ("relation",)),
        ("a circle left of a star", ["red circle a1", "blue star a4"], ("relation",)),
        ("a circle above a star", ["red circle a1", "blue star a4"], ()),
        ("a circle below a star", ["red circle a1", "blue star a4"], ("relation",)),
        ("a circle left of a star", ["red circle a1"], ("count", "relation")),
        ("a circle left of a star", ["red star a1"], ("count",)),
        ("a circle left of a red star", ["red circle a1", "blue star d1"], ("colour", "relation")),
        ("two circles left of a star", ["red circle a1", "red circle a2", "red star d1"], ()),
        ("two circles left of a star", ["red circle a1", "red circle d3", "red star d1"], ("relation",)),
        # Clauses of one shape: any assignment that satisfies all of them will do.
        ("a red star and a star", ["blue star a1", "red star b1"], ()),
        ("a star and a red star", ["red star b1", "blue star a1"], ()),
        ("a red star left of a blue star", ["blue star d1", "red star a1"], ()),
        ("a red star left of a blue star", ["blue star a1", "red star d1"], ("relation",)),
        ("a star left of a red star", ["red star d1", "red star a1"], ()),
        ("a red star and a blue star", ["red star d1", "red star a1"], ("colour",)),
        ("a red star and a blue star", ["red star d1"], ("count",)),
    ],
)
def test_verdicts(prompt: str, things: list[str], failures: tuple[str, ...]):
    verdict = judge(read_request(prompt), render(scene(*things), LEVEL))
    assert verdict.failures == failures, verdict
    assert verdict.correct == (not failures) == (not verdict.reason)


def test_reasons_name_what_is_wrong():
    request = read_request("two red circles and a star left of a square")
    verdict = judge(request, scene("red circle a1", "red star d1", "red square a2", "white ring d4"))
    assert verdict.reason == (
        "expected two circles, found 1; expected one star left of one square, found the star right of "
        "the square; nobody asked for: white ring at d4"
    )
    assert {check.constraint for check in verdict.checks if check.ok} == {
        "one square",
        "one star",
        "everything clear",
    }


def test_unclear_things_fail():
    image = render(scene("red circle a1"), LEVEL)
    image[18:22, 18:22] = 255
    verdict = judge(read_request("a circle"), image)
    assert verdict.failures == ("unclear",) and "c3" in verdict.reason
    assert [check.ok for check in verdict.checks if check.kind == "count"] == [True]


def test_no_clear_thing_is_left_out():
    ghost = make_object(LEVEL, UNCLEAR, "red", "b2")
    things = (*scene("red circle a1").objects, ghost)
    assert not judge(read_request("a circle"), Scene(things)).correct


def test_verdicts_are_json():
    verdict = judge(read_request("a red circle"), np.full((32, 32, 3), 128, np.uint8))
    assert json.loads(json.dumps(verdict.to_json())) == {
        "correct": False,
        "checks": [
            {
                "kind": "count",
                "constraint": "one circle",
                "ok": False,
                "reason": "expected one circle, found 0",
            },
            {"kind": "extra", "constraint": "nothing else", "ok": True, "reason": ""},
            {"kind": "unclear", "constraint": "everything clear", "ok": True, "reason": ""},
        ],
    }


def test_many_equal_things_are_judged_in_time():
    level = get_level("free128")
    request = read_request("four red stars and four stars", level)
    cells = [f"{column}{row}" for column in "abcdefgh" for row in "1357"][:20]
    assert not judge(request, scene(*(f"blue star {cell}" for cell in cells), level="free128")).correct
