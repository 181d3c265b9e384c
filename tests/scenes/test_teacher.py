from __future__ import annotations

import collections
import json
import re

import numpy as np
import pytest

from process_gen.evaluation.reading import read_description
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
    teach,
    texts,
)
from process_gen.scenes.graph import OPPOSITE, make_object
from process_gen.scenes.judge import may_become
from process_gen.scenes.mistakes import MISTAKES, name_fault, plant, say_repair
from process_gen.scenes.placement import place_request, plainly, sort_places
from process_gen.scenes.schedule import MAX_STEPS
from process_gen.scenes.splits import HELD_OUT_COLOURED, SPLITS
from process_gen.scenes.words import count_tokens
from process_gen.trajectory.markup import SPECIAL_PATTERN, write_plan, write_refine
from process_gen.trajectory.stages import Mode, targets_of
from tests.benchmarks.parser_noise import shown
from tests.data.train_tokenizer import corpus, vocabulary
from tests.scenes.making import lessons


def _scenes(trajectory, level):
    """(intended, drawn) scene of each step."""
    scenes, drafts = trajectory.metadata["scenes"], trajectory.metadata["drafts"]
    for scene, draft in zip(scenes, drafts, strict=True):
        intended = scene_from_json(scene, level)
        yield intended, intended if draft is None else scene_from_json(draft, level)


@pytest.mark.parametrize(
    "level, count", [("default", 1600), ("jitter", 300), ("free64", 60), ("free128", 30), ("hung", 120)]
)
def test_every_trajectory_ends_right(level: str, count: int):
    for index, split in enumerate(SPLITS):
        for request, trajectory in lessons(level, count // 2, index, split):
            verdict = judge(request, trajectory.image)
            assert verdict.correct, (request.text, verdict.reason)
            assert 1 <= len(trajectory.steps) <= MAX_STEPS
            assert trajectory.prompt == request.text


@pytest.mark.parametrize(
    "level, count", [("default", 2000), ("free64", 200), ("free128", 200), ("hung", 200)]
)
def test_texts_keep_to_budget_and_vocabulary(level: str, count: int):
    budget, words = get_level(level).budget, set(vocabulary(level))
    for _, trajectory in lessons(level, count, wrong=0.4, slip=0.3, detour=0.6):
        assert count_tokens(trajectory.prompt) + 2 <= budget.prompt
        for step in trajectory.steps:
            assert count_tokens(write_plan(step.plan)) + 2 <= budget.plan
            if step.inspect is not None:
                assert count_tokens(step.inspect) + 2 <= budget.inspect
            if step.refines:
                assert count_tokens(write_refine(step.refine)) + 2 <= budget.refine
        for text in texts(trajectory):
            assert set(re.findall(r"\w+|[^\w\s]", SPECIAL_PATTERN.sub(" ", text))) <= words
    assert len(words) < 200


def test_stages_fit_together():
    for _, trajectory in lessons("default", 1500, wrong=0.4, slip=0.3, detour=0.5):
        slipped = False
        for index, (step, fault) in enumerate(
            zip(trajectory.steps, trajectory.metadata["mistakes"], strict=True)
        ):
            assert step.draft.image_ok == (fault is None or fault["planned"])
            assert step.draft.before_weight == (fault is None or not fault["planned"])
            assert step.draft.image_weight == step.draft.after_weight == 1
            if fault is None:
                assert step.inspect and not step.refines
            elif fault["noticed"]:
                (correction,) = step.refines
                assert step.inspect and step.refine and correction.image_ok and correction.after is None
                assert correction.before_weight == correction.image_weight == 1
            else:
                assert step.inspect is None and not step.refines
                assert index + 1 < len(trajectory.steps) and not slipped
            target = targets_of(step.turns)[0]
            assert target == (0 if step.draft.image_ok else len(step.turns) - 1 if step.refines else -1)
            slipped = fault is not None and not fault["noticed"]


def test_images_show_what_the_metadata_say():
    for _, trajectory in lessons("default", 300, wrong=0.5, slip=0.2):
        for step, (intended, drawn) in zip(trajectory.steps, _scenes(trajectory, "default"), strict=True):
            assert shown(parse(step.sketch, "default")) == shown(drawn)
            right = step.draft.image_ok and step.draft.before_weight == 1
            assert right == (shown(drawn) == shown(intended))
            if step.refines:
                assert shown(parse(step.refined, "default")) == shown(intended)


def test_descriptions_list_the_whole_scene():
    for _, trajectory in lessons("default", 500, misplan=0):
        for step, (intended, _) in zip(trajectory.steps, _scenes(trajectory, "default"), strict=True):
            words = re.findall(r"\w+", step.plan.description)
            assert sorted(w for w in words if w in get_level("default").cell_index) == sorted(
                thing.cell for thing in intended.objects
            )
            assert [w for w in words if w in get_level("default").colours] == [
                thing.colour for thing in intended.objects
            ]


def test_training_draws_held_out_colours_and_never_asks_for_them():
    drawn = set()
    for _, trajectory in lessons("default", 1500):
        for scene, _ in _scenes(trajectory, "default"):
            drawn |= {(thing.colour, thing.shape) for thing in scene.objects}
        assert not any(f"{colour} {shape}" in trajectory.prompt for colour, shape in HELD_OUT_COLOURED)
    assert drawn >= HELD_OUT_COLOURED


def test_relations_are_plain():
    for request, trajectory in lessons("default", 600):
        final = scene_from_json(trajectory.metadata["scenes"][-1], "default").objects
        for clause in request.clauses:
            if clause.position:
                relation, target = clause.position
                others = [thing for thing in final if thing.shape == request.clauses[target].shape]
                mine = [thing for thing in final if thing.shape == clause.shape]
                assert all(plainly(thing, [(relation, other) for other in others]) for thing in mine)


def test_detours_and_steps_vary():
    taught = [trajectory for _, trajectory in lessons("default", 1200)]
    said = " ".join(step.plan.instruction for one in taught for step in one.steps)
    for verb in ("add", "put", "start", "change", "move", "swap", "remove", "replace"):
        assert re.search(rf"\b{verb}\b", said), verb
    lengths = [len(one.steps) for one in taught]
    assert 1.9 < np.mean(lengths) < 3 and max(lengths) >= 5
    plain = [len(one.steps) for _, one in lessons("default", 900, detour=0, pair=1)]
    assert max(plain) == 3


def test_odds_of_zero_and_one():
    for _, trajectory in lessons("default", 90, wrong=0, misplan=0, slip=0):
        assert all(turn.image_ok and turn.before_weight == 1 for turn in trajectory.turns)
        assert len(trajectory.turns) == len(trajectory.steps)
    for _, trajectory in lessons("default", 90, wrong=0, misplan=0, slip=0.3):
        assert not any(turn.refines for turn in trajectory.turns)  # what nobody notices is not corrected
    for _, trajectory in lessons("default", 90, wrong=1, slip=0):
        assert all(len(step.refines) == 1 for step in trajectory.steps)


@pytest.mark.parametrize("kind", MISTAKES)
def test_planted_mistakes_fail_the_judge_and_are_named(kind: str):
    rng = np.random.default_rng(0)
    request = read_request("two red circles and a blue square left of a star")
    failures = {
        "colour": {"colour"},
        "shape": {"count"},
        "place": {"relation"},
        "count": {"count"},
        "missing": {"count"},
        "extra": {"count", "extra"},
    }[kind]
    seen = set()
    for _ in range(60):
        trajectory = baseline(request, rng, Mode.SINGLE_PASS)
        scene = scene_from_json(trajectory.metadata["scenes"][0], "default")
        state = dict(enumerate(scene.objects))
        level = get_level("default")
        mistake = plant(rng, state, int(rng.integers(len(state))), request, kind)
        assert mistake is not None and mistake.kind == kind
        spoiled = type(scene)(tuple(mistake.apply(state).values()))
        verdict = judge(request, render(spoiled, level))
        # Of a thing whose colour or place was left open it is still a fine image.
        assert kind in ("colour", "place") or set(verdict.failures) & failures
        seen.update(verdict.failures)
        thing = mistake.right or mistake.wrong
        assert thing.cell in name_fault(mistake, state, rng, level) or kind == "extra"
        assert thing.cell in say_repair(mistake, level, rng)
    assert seen >= failures


def test_inspections_name_the_error_and_not_what_is_still_to_come():
    for _, trajectory in lessons("default", 600, wrong=0.5, slip=0):
        for step, (intended, drawn) in zip(trajectory.steps, _scenes(trajectory, "default"), strict=True):
            if step.draft.image_ok and step.draft.before_weight == 1:
                continue
            wrong = set(drawn.objects) ^ set(intended.objects)
            cells = {w for w in re.findall(r"\w+", step.inspect) if w in get_level("default").cell_index}
            assert cells <= {thing.cell for thing in wrong} and cells


def test_a_wrong_plan_contradicts_the_prompt_or_itself_and_is_put_right():
    kinds, contradictions, taken = collections.Counter(), 0, 0
    for request, trajectory in lessons("default", 900, wrong=0, misplan=1, slip=0, detour=0.2):
        facts = zip(trajectory.steps, trajectory.metadata["mistakes"], strict=True)
        for (step, fault), (intended, drawn) in zip(facts, _scenes(trajectory, "default"), strict=True):
            if fault is None:
                assert step.draft.before_weight == 1
                continue
            kinds[fault["kind"]] += 1
            assert fault["planned"] and step.draft.before_weight == 0 and step.draft.image_ok
            assert step.inspect and step.refine
            described = read_description(step.plan.description, "default")
            cells = collections.Counter(thing.cell for thing in described.objects)
            # The draft carries the plan out: all that it can show of what the description says.
            assert {thing.cell for thing in drawn.objects} == set(cells)
            assert may_become(request, intended)
            twice = max(cells.values()) > 1
            taken, contradictions = taken + twice, contradictions + (not may_become(request, drawn))
            assert twice or not may_become(request, drawn)
    assert taken > 200 and contradictions > 200 and kinds.keys() == {"place", "count", "colour", "shape"}


def test_baselines():
    rng = np.random.default_rng(0)
    for category in categories("default"):
        request = sample_request(rng, "default", category)
        planned = baseline(request, rng, Mode.PLAN_ONLY)
        direct = baseline(request, rng, Mode.SINGLE_PASS)
        for one in (planned, direct):
            (turn,) = one.turns
            assert turn.image_ok and not turn.refines and turn.after is None
            assert judge(request, one.image).correct
        assert direct.steps[0].plan is None
        assert count_tokens(write_plan(planned.steps[0].plan)) + 2 <= get_level("default").budget.plan


def test_a_request_without_room_is_refused():
    request = read_request("two circles left of a star, the star left of two squares")
    with pytest.raises(ValueError, match="has no room for"):
        teach(request, np.random.default_rng(0))


def test_same_seed_same_trajectories():
    def draw():
        return [
            (texts(one), [turn.image.tobytes() for turn in one.turns], json.dumps(one.metadata))
            for _, one in lessons("default", 30)
        ]

    assert draw() == draw()


def test_corpus_has_every_word():
    lines = corpus(np.random.default_rng(0), "default", 2500)
    seen = set(re.findall(r"\w+|[^\w\s]", SPECIAL_PATTERN.sub(" ", " ".join(lines))))
    assert set(vocabulary("default")) - seen <= {".", ";", "is", "are", "nothing", "yet", "five", "six"}


def test_things_stand_in_reading_order_where_nothing_relates_them():
    index = get_level("default").cell_index
    for request, trajectory in lessons("default", 300, wrong=0, misplan=0, slip=0, detour=0):
        (*_, scene) = (intended for intended, _ in _scenes(trajectory, "default"))
        if request.partners:
            continue
        cells = [index[thing.cell] for thing in scene.objects]
        assert cells == sorted(cells), request.text


@pytest.mark.parametrize("level", ["default", "jitter", "free64"])
def test_sorting_places_keeps_what_stands_there_and_every_relation(level: str):
    rng = np.random.default_rng(0)
    for index in range(120):
        request = sample_request(rng, level, categories(level)[3 + index % 5])
        before = place_request(rng, request)
        after = sort_places(before, request)
        assert sorted((t.cell, t.x, t.y) for t in after) == sorted((t.cell, t.x, t.y) for t in before)
        assert [(t.shape, t.colour, t.size) for t in after] == [(t.shape, t.colour, t.size) for t in before]
        things = dict(enumerate(after))
        assert all(plainly(thing, request.related(number, things)) for number, thing in things.items())


def test_an_addition_names_its_anchor_before_its_cell():
    found = 0
    pattern = r"a (\w+) (\w+) (left of|right of|above|below) the (\w+) at (\w\d) at (\w\d)"
    for request, trajectory in lessons("default", 600, wrong=0, misplan=0, slip=0, detour=0):
        asked = {
            (clause.shape, clause.position[0], request.clauses[clause.position[1]].shape)
            for clause in request.clauses
            if clause.position
        }
        for step in trajectory.steps:
            for colour, shape, relation, other, anchor, cell in re.findall(pattern, step.plan.instruction):
                thing = make_object(get_level("default"), shape, colour, cell)
                assert plainly(thing, [(relation, make_object(get_level("default"), other, "red", anchor))])
                assert (shape, relation, other) in asked or (other, OPPOSITE[relation], shape) in asked
                assert f"{other} at {anchor}" in step.plan.description or f"{other} {anchor}" in (
                    step.plan.description
                )
                found += 1
    assert found > 100
