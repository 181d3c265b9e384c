"""The level whose texts name no cell: what they say and the canvas together tell where everything goes."""

from __future__ import annotations

import collections
import dataclasses
import functools
import re

import numpy as np
import pytest

from process_gen.evaluation.process import count
from process_gen.evaluation.reading import named_kind, objects_of, read_description
from process_gen.scenes import (
    baseline,
    categories,
    get_level,
    judge,
    parse,
    read_request,
    render,
    sample_request,
    scene_from_json,
    texts,
)
from process_gen.scenes.graph import Object, Scene, make_object
from process_gen.scenes.hung import match_cells
from process_gen.scenes.judge import may_become
from process_gen.scenes.levels import LEVELS
from process_gen.scenes.oracle import look, plan_next
from process_gen.scenes.placement import hang, nearest_free
from process_gen.scenes.splits import SPLITS, is_held_out
from process_gen.trajectory.sampled import SampledTrajectory
from process_gen.trajectory.stages import Mode
from tests.scenes import making

LEVEL = get_level("hung")
THING = r"the (\w+) (\w+)"
PLACE = r"(?: (left of|right of|above|below) the (\w+) (\w+))?"
WORDS = (
    (rf"(?:change|turn) {THING} (?:to|into) a (\w+)", "shape"),
    (rf"replace {THING} with a \w+ (\w+)", "shape"),
    (rf"(?:change|make|paint) {THING} (?:to )?(\w+)", "colour"),
    (rf"(?:move|shift) {THING}{PLACE}", "move"),
    (rf"(?:remove|erase|take away) {THING}{PLACE}", "remove"),
    (rf"(?:a|missing) (?!missing)(\w+) (\w+){PLACE}", "add"),
)


lessons, scene = functools.partial(making.lessons, "hung"), functools.partial(making.scene, level="hung")


def carry_out(text: str, things: list[Object]) -> list[Object]:
    """A canvas after what a text says, by its words and the rule of the level alone."""
    found = [(m.start(), m.end(), m.groups(), kind) for p, kind in WORDS for m in re.finditer(p, text)]
    ends = 0
    for start, end, (colour, shape, *rest), kind in sorted(found, key=lambda one: (one[0], -one[1])):
        if start < ends:
            continue  # a part of what is carried out already
        ends = end
        mine = [one for one in things if (one.shape, one.colour) == (shape, colour)]
        if kind in ("shape", "colour"):
            things = [dataclasses.replace(one, **{kind: rest[0]}) if one in mine else one for one in things]
            continue
        target = [one for one in things if (one.shape, one.colour) == (rest[2], rest[1])]
        if kind == "remove":
            order = [place.cell for place in nearest_free(LEVEL, [], None)]
            side = [one for one in mine if target and hung_on(one, things, rest[0], target[0])]
            last = side[0] if side else max(mine, key=lambda one: order.index(one.cell))
            things = [one for one in things if one is not last]
            continue
        things = [one for one in things if kind == "add" or one not in mine]
        one = Object(shape, colour, "", 0, 0, 7)
        things = [*things, hang(one, things, LEVEL, [(rest[0], other) for other in target])]
    return things


def hung_on(one: Object, things: list[Object], relation: str, target: Object) -> bool:
    """Whether a thing stands on that side of another: plainly to the eye, whatever is between."""
    middle = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}[relation]
    dx, dy = one.x - target.x, one.y - target.y
    along, across = dx * middle[0] + dy * middle[1], abs(dx * middle[1]) + abs(dy * middle[0])
    return along >= 2 * across and along > 0


def cells(things) -> collections.Counter:
    return objects_of(Scene(tuple(things)))


def test_a_thing_hangs_on_the_nearest_free_cell_of_its_side():
    ring = make_object(LEVEL, "ring", "red", "c3")
    star = Object("star", "blue", "", 0, 0, 7)
    assert hang(ring, [], LEVEL).cell == "c3"
    assert hang(star, [ring], LEVEL).cell == "c2", "of equally near cells the upper one"
    assert [hang(star, [ring], LEVEL, [(side, ring)]).cell for side in ("left of", "above")] == ["b3", "c2"]
    taken = [ring, *scene("red star b3", "red cross a3").objects]
    assert hang(star, taken, LEVEL, [("left of", ring)]).cell == "a2", "then the one beside, the upper first"
    row = [make_object(LEVEL, "ring", "red", f"a{row}") for row in range(1, 7)]
    assert hang(star, row, LEVEL, [("left of", row[0])]) is None


def test_the_judge_takes_no_diagonal_for_a_relation():
    request = read_request("a red star left of a blue ring", "hung")
    assert judge(request, scene("red star b3", "blue ring c3")).correct
    assert judge(request, scene("red star a2", "blue ring c3")).correct
    assert not judge(request, scene("red star b2", "blue ring c3")).correct
    diagonal = dataclasses.replace(request, level=get_level("default"))
    assert judge(diagonal, scene("red star b2", "blue ring c3")).correct, "as elsewhere, and in GenEval"


def test_no_text_names_a_cell():
    names = {cell for level in LEVELS.values() for cell in level.cells}
    rng = np.random.default_rng(0)
    for request, trajectory in lessons(80, wrong=0.4, misplan=0.3, slip=0.2, detour=0.5):
        arms = (trajectory, *(baseline(request, rng, mode) for mode in list(Mode)[1:]))
        said = " ".join(text for one in arms for text in texts(one))
        assert not names & set(re.findall(r"\w+", said))


def test_final_images_are_right_and_scenes_are_read_back():
    for split in SPLITS:
        for request, trajectory in lessons(60, 1, split, wrong=0.3, misplan=0.3, slip=0.2, detour=0.5):
            assert judge(request, trajectory.image).correct
            for data in trajectory.metadata["scenes"]:
                meant = scene_from_json(data, "hung")
                assert cells(parse(render(meant, "hung"), "hung").objects) == cells(meant.objects)


@pytest.mark.parametrize("seed", [1, 2, 5])
def test_the_words_and_the_canvas_tell_where_everything_goes(seed):
    """Each step anew: what an instruction says, carried out on the image before it, is the draft."""
    done = 0
    for _, trajectory in lessons(120, seed, wrong=0.2, misplan=0.3, slip=0.3, detour=0.5):
        before: list[Object] = []
        for step, fault in zip(trajectory.steps, trajectory.metadata["mistakes"], strict=True):
            draft = parse(step.sketch, "hung").objects
            if fault is None or fault["planned"]:
                new = cells(carry_out(step.plan.instruction, before)) - cells(before)
                assert new <= cells(draft), (step.plan.instruction, before, draft)
                done += new.total()
            before = list(parse(step.image, "hung").objects)
    assert done > 200


def test_the_words_of_a_correction_lead_back():
    kinds = collections.Counter()
    for _, trajectory in lessons(150, 3, wrong=0.5, misplan=0.4, slip=0, detour=0.3):
        for step, fault in zip(trajectory.steps, trajectory.metadata["mistakes"], strict=True):
            if fault is not None:
                end = carry_out(step.refine, list(parse(step.sketch, "hung").objects))
                assert cells(end) == cells(parse(step.refined, "hung").objects), (step.inspect, step.refine)
                kinds[fault["kind"]] += 1
    assert min(kinds.values()) > 5 and len(kinds) == 6


def test_a_wrong_plan_names_its_anchor_and_contradicts_the_prompt():
    kinds = collections.Counter()
    for request, trajectory in lessons(120, 4, wrong=0, misplan=1, slip=0, detour=0):
        for step, fault in zip(trajectory.steps, trajectory.metadata["mistakes"], strict=True):
            if fault is None:
                continue
            kinds[fault["kind"]] += 1
            assert step.draft.before_weight == 0 and step.draft.image_ok
            assert not may_become(request, parse(step.sketch, "hung"))
            meant = read_description(step.plan.description, "hung")
            assert cells(meant.objects) == cells(parse(step.sketch, "hung").objects)
            if fault["kind"] == "place":
                assert re.search(r"(left of|right of|above|below) the \w+ \w+", step.plan.instruction)
            named = {"count": "extra"}.get(fault["kind"], fault["kind"])
            assert named_kind(step.inspect, step.refine) == named
    assert set(kinds) == {"place", "colour", "shape", "count", "extra"} and kinds["place"] > 30


def test_trees_hold_no_held_out_composition_in_training_and_one_otherwise():
    rng = np.random.default_rng(5)
    for category in categories("hung")[6:]:
        for _ in range(30):
            request = sample_request(rng, "hung", category)
            assert not is_held_out(request.clauses) and request.category == category
            assert read_request(request.text, "hung") == request
            assert [clause.position is None for clause in request.clauses] == [
                index == 0 for index in range(len(request.clauses))
            ]
            assert is_held_out(sample_request(rng, "hung", category, "heldout").clauses)


def test_a_step_adds_one_thing():
    for request, trajectory in lessons(60, 6, wrong=0, misplan=0, slip=0, detour=0):
        total = sum(clause.count for clause in request.clauses)
        assert len(trajectory.steps) == min(total, 5)


def test_the_oracle_draws_every_prompt_and_finds_every_fault():
    rng = np.random.default_rng(7)
    for index in range(60):
        request = sample_request(rng, "hung", categories("hung")[index % 10], SPLITS[index % 2])
        canvas, steps = scene(*(["red ring c3", "blue star c2"] if index % 3 == 0 else [])), 0
        while (plan := plan_next(request, canvas, steps)) is not None:
            meant = read_description(plan.description, "hung")
            canvas, steps = Scene(meant.objects), steps + 1
            assert index % 3 == 0 or look(request, canvas, meant, None, steps - 1)[1] is None
        assert judge(request, canvas).correct and 0 < steps <= 7
    for request, trajectory in lessons(100, 8, wrong=0.4, misplan=0.4, slip=0, detour=0):
        for step, fault in zip(trajectory.steps, trajectory.metadata["mistakes"], strict=True):
            meant = read_description(step.plan.description, "hung")
            correction = look(request, parse(step.sketch, "hung"), meant)[1]
            assert (correction is not None) == (fault is not None)


def test_the_oracle_corrects_a_wrong_colour_or_shape_and_draws_nothing_beside_it():
    request = read_request("a red ring, a blue star left of the ring", "hung")
    meant = read_description("red ring, blue star left of red ring", "hung")
    for draft in ("green star b3", "blue circle b3"):
        drawn = [*scene("red ring c3").objects, *scene(draft).objects]
        _, correction = look(request, Scene(tuple(drawn)), meant)
        assert judge(request, Scene(tuple(carry_out(correction, drawn)))).correct
        assert len(carry_out(correction, drawn)) == 2


def test_measures_of_the_process_count_the_teachers_inspections_as_exact():
    total = collections.Counter()
    for request, trajectory in lessons(100, 9, wrong=0.3, misplan=0.3, slip=0, detour=0):
        counts = count(SampledTrajectory(request.text, trajectory.turns, stopped="model"), request)
        faults = [fault for fault in trajectory.metadata["mistakes"] if fault is not None]
        assert (counts["caught"], counts["missed"], counts["false_alarms"]) == (len(faults), 0, 0)
        assert counts["fixed"] == len(faults) and counts["unread"] == counts["wrong_after_refine"] == 0
        total += counts
    for kind in ("colour", "shape"):
        assert total["named", kind] == total["errors", kind] >= 5


def test_of_things_that_look_alike_the_one_hangs_of_which_it_is_said():
    meant = read_description("red circle, red star, red circle left of red star", "hung")
    drawn = scene("red circle b3", "red star c3", "red circle f6")
    found = dict(
        zip((one.cell for one in drawn.objects), match_cells(drawn, meant, LEVEL).objects, strict=True)
    )
    assert found["b3"].cell == meant.objects[2].cell and found["f6"].cell == meant.objects[0].cell


def test_a_canvas_shows_a_description_wherever_its_things_stand():
    meant = read_description("red ring, blue star above red ring, red star left of blue star", "hung")
    elsewhere = scene("red ring e5", "blue star e3", "red star b3")
    assert objects_of(match_cells(elsewhere, meant, LEVEL)) == objects_of(meant)
    wrong = scene("red ring c3", "blue star b3", "red star a3")
    assert (objects_of(meant) - objects_of(match_cells(wrong, meant, LEVEL))).total() == 1


@pytest.mark.parametrize(
    "text", ["red ring at c3", "red ring, blue star above", "red ring left of blue star", "ring", ""]
)
def test_what_is_no_description_of_this_level_is_none(text):
    assert read_description(text, "hung") is None
