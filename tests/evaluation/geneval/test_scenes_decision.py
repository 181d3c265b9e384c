"""The scenes judge and GenEval's decision agree on what is right and what is wrong.

Wherever no two clauses of a prompt name one shape, that is, as in GenEval's six categories. The exact
parser takes the place of the detector. Every shape is excluded above the number that was asked for, those
that nobody asked for above none, and so is what is unclear: GenEval itself passes an image with more.
"""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import pytest

from process_gen.evaluation.geneval import decision
from process_gen.evaluation.geneval.files import check_metadata
from process_gen.scenes import judge, parse, read_request, render, sample_request
from process_gen.scenes.graph import UNCLEAR, Object, Scene, make_object
from process_gen.scenes.levels import LEVELS, get_level
from process_gen.scenes.placement import find_place, place_request
from process_gen.scenes.requests import GENEVAL_CATEGORIES


def scenes_metadata(request) -> dict:
    """A request as a line of GenEval's metadata, with all that nobody asked for excluded."""
    metadata, asked = request.metadata(), {clause.shape for clause in request.clauses}
    rest = [shape for shape in (*request.level.shapes, UNCLEAR) if shape not in asked]
    return metadata | {"exclude": metadata["exclude"] + [{"class": shape, "count": 1} for shape in rest]}


def judge_scene(request, scene: Scene) -> decision.Verdict:
    """GenEval's verdict on what is on a canvas; the largest has the best score, and no score comes twice."""
    things = sorted(scene.objects, key=lambda one: (-one.size, one.y, one.x))
    found = [
        decision.Detection(one.shape if one.clear else UNCLEAR, 1 - n / 1024, one.box, color=one.colour)
        for n, one in enumerate(things)
    ]
    metadata = scenes_metadata(request)
    selected = decision.select(found, metadata["tag"])
    return decision.judge(metadata, selected, lambda cls, ones: [one.color or "" for one in ones])


def _mutated(rng: np.random.Generator, things: list[Object], level) -> list[Object]:
    """The same with up to two changes: another colour or shape, a swap, one more, one less."""
    things = list(things)
    for _ in range(rng.integers(3)):
        kind, at = rng.integers(5), int(rng.integers(max(len(things), 1)))
        looks = (str(rng.choice(level.shapes)), str(rng.choice(level.colours)), level.sizes[-1][1])
        if kind == 0 or not things:
            more = find_place(rng, level, Object(looks[0], looks[1], "", 0, 0, looks[2]), things)
            things += [more] if more else []
        elif kind == 1:
            del things[at]
        elif kind == 2:
            things[at] = dataclasses.replace(things[at], colour=looks[1])
        elif kind == 3:
            things[at] = dataclasses.replace(things[at], shape=looks[0])
        else:
            one, other = things[at], things[-1]
            things[at] = dataclasses.replace(other, shape=one.shape, colour=one.colour)
            things[-1] = dataclasses.replace(one, shape=other.shape, colour=other.colour)
    return things


@pytest.mark.parametrize("level, draws", [("default", 100), ("jitter", 20), ("free64", 6), ("free128", 2)])
def test_both_say_the_same_of_images_right_and_wrong(rng, level: str, draws: int):
    seen = collections.Counter()
    for category in GENEVAL_CATEGORIES:
        for _ in range(draws):
            request = sample_request(rng, level, category, str(rng.choice(["train", "heldout"])))
            things = _mutated(rng, place_request(rng, request), get_level(level))
            image = render(Scene(tuple(things)), level)
            if rng.random() < 0.1:
                image[:6, :6] = rng.integers(0, 256, 3)  # something unclear
            scene = parse(image, level)
            ours, verdict = judge_scene(request, scene), judge(request, scene)
            assert ours.correct == verdict.correct, (request.text, ours.reason, verdict.reason)
            seen[category, verdict.correct] += 1
    if draws >= 100:
        assert len(seen) == 2 * len(GENEVAL_CATEGORIES) and min(seen.values()) > draws / 20, seen


@pytest.mark.parametrize("level", LEVELS)
def test_requests_become_metadata_that_the_files_take(rng, level: str):
    for category in GENEVAL_CATEGORIES:
        check_metadata(scenes_metadata(sample_request(rng, level, category)), category)


def test_where_clauses_share_a_shape_the_larger_object_decides():
    level = get_level("default")
    red, blue = make_object(level, "star", "red", "a1"), make_object(level, "star", "blue", "d1")
    request = read_request("a red star and a blue star")
    assert judge(request, Scene((red, blue))).correct
    assert judge_scene(request, Scene((red, blue))).reason == "expected blue star>=1, found 0 blue; and 1 red"


def test_the_order_of_the_objects_does_not_matter(rng):
    request = sample_request(rng, "default", "color_attr")
    things = place_request(rng, request)
    for _ in range(5):
        things = [things[i] for i in rng.permutation(len(things))]
        assert judge_scene(request, Scene(tuple(things))).correct
