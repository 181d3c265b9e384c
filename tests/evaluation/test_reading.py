"""Descriptions read back, and final images fail for the reason that was planted."""

import pytest
from evaluation_fakes import canvas

from process_gen.evaluation.reading import (
    FAILURES,
    changed_cells,
    objects_of,
    read_description,
    verdict_of,
)
from process_gen.scenes.grammar import read_request
from process_gen.scenes.graph import Scene, make_object, scene_from_json
from process_gen.scenes.judge import judge
from process_gen.scenes.language import describe
from process_gen.scenes.levels import get_level
from process_gen.scenes.prompts import sample_request
from process_gen.scenes.requests import categories
from process_gen.scenes.teacher import teach

LEVEL = get_level("default")


@pytest.mark.parametrize("level", ["default", "free64"])
def test_every_description_of_the_teacher_reads_back(level, rng):
    read = 0
    for index in range(120):
        category = categories(level)[index % len(categories(level))]
        trajectory = teach(sample_request(rng, level, category), rng, misplan=0)
        for step, scene in zip(trajectory.steps, trajectory.metadata["scenes"], strict=True):
            meant = scene_from_json(scene, level)
            assert objects_of(read_description(step.plan.description, level)) == objects_of(meant)
            read += 1
    assert read > 200


def test_every_style_of_description_reads_the_same():
    things = [make_object(LEVEL, "circle", "red", "b2"), make_object(LEVEL, "star", "blue", "d4")]
    for style in range(3):
        assert objects_of(read_description(describe(things, LEVEL, style), LEVEL)) == objects_of(
            Scene(tuple(things))
        )
    assert read_description("nothing yet", LEVEL) == Scene()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "red circle",
        "red circle at z9",
        "a red red circle at b2",
        "circle red at b2",
        "red circle at b2 ,",
    ],
)
def test_what_is_no_description_is_none(text):
    assert read_description(text, LEVEL) is None


@pytest.mark.parametrize(
    "instruction, cells",
    [
        ("start with a red circle at b2", {"b2"}),
        ("add a red star left of the ring at c2 at b2", {"b2"}),
        ("put a red star at b2 and a blue ring above the star at b2 at b1", {"b1", "b2"}),
        ("add red star b2, blue ring c3", {"b2", "c3"}),
        ("move the star at a1 to b2, then remove the ring at D4", {"a1", "b2", "d4"}),
        ("shift the star from a1 to b2", {"a1", "b2"}),
        ("swap a1 and b2", {"a1", "b2"}),
        ("make the star at a1 blue", {"a1"}),
        ("go on at z9", set()),
        ("", set()),
    ],
)
def test_an_instruction_changes_the_cells_that_it_names(instruction, cells):
    assert changed_cells(instruction, LEVEL) == cells


@pytest.mark.parametrize(
    "prompt, things, failures",
    [
        ("a red circle", ["red circle a1"], []),
        ("a red circle", ["blue circle a1"], ["colour"]),
        ("a red circle", ["red square a1"], ["shape"]),
        ("a red circle", [], ["missing"]),
        ("a red circle", ["red circle a1", "blue star c3"], ["extra"]),
        ("two circles", ["red circle a1", "red circle c1", "blue circle c3"], ["count"]),
        ("two circles", ["red circle a1"], ["missing"]),
        ("a circle left of a square", ["red circle c1", "blue square a1"], ["relation"]),
        # No relation can be judged where one of the two is not there.
        ("a circle left of a square", ["red circle c1"], ["missing"]),
        ("a red circle left of a square", ["blue circle a1", "blue square c1"], ["colour"]),
        ("a circle and a star", ["red circle a1", "red star a3", "red ring c3"], ["extra"]),
    ],
)
def test_a_wrong_image_fails_for_the_planted_reason(prompt, things, failures):
    request, image = read_request(prompt), canvas(*things)
    verdict = verdict_of(request, image)
    assert verdict["failures"] == failures
    assert verdict["ok"] == judge(request, image).correct == (not failures)
    assert verdict["ok"] == all(one["ok"] for one in verdict["constraints"])
    assert all(bool(one["reason"]) != one["ok"] for one in verdict["constraints"])
    assert verdict["group"] == request.category and set(failures) <= set(FAILURES)


def test_blobs_are_unclear():
    request = read_request("a red circle")
    blob = canvas()
    blob[8:16, 8:16] = (150, 90, 60)
    assert verdict_of(request, blob)["failures"] == ["unclear"]
