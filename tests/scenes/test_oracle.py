"""The oracle: from any canvas to the prompt in the teacher's words, and every planted mistake by its name."""

import collections
import dataclasses

import pytest

from process_gen.evaluation.reading import objects_of, read_description
from process_gen.scenes.grammar import read_request
from process_gen.scenes.graph import UNCLEAR, Scene, make_object
from process_gen.scenes.judge import judge
from process_gen.scenes.levels import get_level
from process_gen.scenes.mistakes import MISTAKES, plant
from process_gen.scenes.oracle import find_mistakes, look, plan_next
from process_gen.scenes.placement import place_request
from process_gen.scenes.prompts import sample_request
from process_gen.scenes.requests import categories
from process_gen.scenes.schedule import MAX_STEPS
from process_gen.scenes.words import count_tokens
from process_gen.trajectory.markup import write_plan
from tests.scenes.making import scene

LEVEL = get_level("default")


def carried_out(request, canvas, room=None):
    """The plans of a canvas on which every plan comes true, and where that leads."""
    level, plans = request.level, []
    while (plan := plan_next(request, canvas, len(plans), room and room - len(plans))) is not None:
        plans.append(plan)
        canvas = read_description(plan.description, level)
        assert canvas is not None and count_tokens(write_plan(plan)) + 2 <= level.budget.plan
    return plans, canvas


@pytest.mark.parametrize("level", ["default", "jitter"])
def test_an_empty_canvas_becomes_what_the_prompt_asks_for(rng, level):
    for index in range(60):
        request = sample_request(rng, level, categories(level)[index % 9], "train")
        plans, canvas = carried_out(request, Scene())
        assert judge(request, canvas).correct and 0 < len(plans) <= MAX_STEPS
        assert carried_out(request, Scene()) == (plans, canvas), "equal input, equal answer"
        few, canvas = carried_out(request, Scene(), room=1)
        assert judge(request, canvas).correct and len(few) == 1


def test_every_level_is_planned_for(rng):
    for level in ("free64", "free128"):
        for category in categories(level)[:8]:
            request = sample_request(rng, level, category, "train")
            assert plan_next(request, Scene(), 0) is not None
            done = Scene(tuple(place_request(rng, request)))
            assert plan_next(request, done, 2) is None


def test_any_canvas_becomes_what_the_prompt_asks_for(rng):
    """Things of another prompt stand there: what may stay stays, the rest is changed or goes."""
    for index in range(80):
        request, other = (sample_request(rng, "default", categories("default")[index % 9]) for _ in range(2))
        canvas = Scene(tuple(place_request(rng, other)[:4]))
        plans, end = carried_out(request, canvas)
        assert judge(request, end).correct and len(plans) <= MAX_STEPS


@pytest.mark.parametrize(
    "canvas, said, left",
    [
        (["blue circle b2"], "circle at b2", 1),  # of the wrong colour
        (["red circle b2", "green star d4"], "green star at d4|star at d4", 1),  # nobody asked for it
        (["red circle b2", "red circle c3"], "circle at", 1),  # one too many
        (["red circle b2"], None, 0),
    ],
)
def test_what_contradicts_the_prompt_is_put_right_first(canvas, said, left):
    plan = plan_next(read_request("a red circle"), scene(*canvas), 1)
    assert (plan is not None) == bool(left)
    if plan:
        assert any(words in plan.instruction for words in said.split("|"))
        assert objects_of(read_description(plan.description, LEVEL)).total() == 1


def test_what_is_unclear_makes_room_or_goes():
    request = read_request("a red circle")
    blur = dataclasses.replace(make_object(LEVEL, "circle", "red", "b2"), shape=UNCLEAR, colour=UNCLEAR)
    plans, end = carried_out(request, Scene((blur,)))
    assert judge(request, end).correct and len(plans) <= 2
    text, correction = look(request, Scene((blur,)), scene("red circle b2"))
    assert "b2" in text and "missing" in text or "there is no" in text
    assert "red circle at b2" in correction


@pytest.mark.parametrize("kind", MISTAKES)
def test_every_planted_mistake_is_found_and_named(rng, kind):
    kinds = collections.Counter()
    for index in range(60):
        request = sample_request(rng, "default", categories("default")[index % 9])
        things = dict(enumerate(place_request(rng, request)))
        meant = Scene(tuple(things.values()))
        mistake = plant(rng, things, int(rng.integers(len(things))), request, kind)
        if mistake is None:
            continue
        drawn = Scene(tuple(mistake.apply(things).values()))
        found = find_mistakes(drawn, meant)
        kinds.update(one.kind for one in found)
        assert len(found) == 1 and Scene(tuple(found[0].apply(things).values())) == drawn
        text, correction = look(request, drawn, meant)
        assert correction is not None and count_tokens(text) + 2 <= LEVEL.budget.inspect
        assert count_tokens(correction) + 4 <= LEVEL.budget.refine
        assert look(request, drawn, meant) == (text, correction)
        right, nothing = look(request, meant, meant)
        assert nothing is None and count_tokens(right) + 2 <= LEVEL.budget.inspect
    assert kinds and set(kinds) <= ({kind} if kind != "count" else {"missing", "extra"})


def test_a_plan_that_contradicts_the_prompt_is_looked_through():
    request, blue = read_request("a red circle"), scene("blue circle b2")
    for meant in (blue, None, scene("red circle b2", "blue star b2")):
        text, correction = look(request, blue, meant)
        assert "circle at b2" in text and "blue" in text + correction and "red" in text + correction
    assert look(request, scene("red circle c3"), None)[1] is None
    text, correction = look(read_request("two red circles"), scene("red circle c3"), scene("red circle c3"))
    assert correction is None, "what is not drawn yet is no mistake"


def test_what_was_drawn_over_is_missed():
    """The plan puts two things into one cell, and the draft shows the later one."""
    request, both = read_request("a red circle and a blue star"), scene("red circle b2", "blue star b2")
    text, correction = look(request, scene("blue star b2"), both, scene("red circle b2"), 1)
    assert "star" in text and "b2" in text and "star" in correction and "b2" in correction
    text, correction = look(request, scene("red circle b2"), both, scene("red circle b2"), 1)
    assert "star" in text and "blue star" in correction
    assert look(request, scene("red circle b2", "blue star a1"), both)[1] is None, "it went elsewhere"


def test_a_correction_that_comes_true_leaves_what_was_meant(rng):
    for index in range(40):
        request = sample_request(rng, "default", categories("default")[index % 9])
        things = dict(enumerate(place_request(rng, request)))
        mistake = plant(rng, things, 0, request)
        if mistake is not None:
            meant = Scene(tuple(things.values()))
            drawn = Scene(tuple(mistake.apply(things).values()))
            (found,) = find_mistakes(drawn, meant)
            repaired = [one for one in drawn.objects if one is not found.wrong]
            repaired += [found.right] if found.right else []
            assert objects_of(Scene(tuple(repaired))) == objects_of(meant)
