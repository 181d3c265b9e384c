"""Somebody else plans or inspects: their words stand in the trajectory, and the rest follows from them."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
from sampling_models import LAYOUT, SpelledTokenizer, make_model, random_params
from test_sampler import CONFIG, PROMPTS, same

from process_gen.sampling import PromptError, Sampler
from process_gen.sampling.outside import Inspection, Unsaid
from process_gen.trajectory.markup import Plan

ROOMY = dataclasses.replace(LAYOUT, before=9)
PLAN, OTHER = Plan("#30", "#31"), Plan("#40", "#41")


@functools.cache
def sampler(**changes) -> Sampler:
    config = dataclasses.replace(CONFIG, temperature=0.0, decision_temperature=1.0, max_turns=5, **changes)
    return Sampler(make_model(ROOMY), random_params(ROOMY), SpelledTokenizer(), config, rows=3)


class Planner:
    """Plans so many steps, and notes what it was asked."""

    def __init__(self, steps: int = 2):
        self.steps, self.asked = steps, []

    def __call__(self, asked):
        self.asked += asked
        done = [sum(not turn.refines for turn in one.turns) for one in asked]
        return [None if n >= self.steps else (PLAN, OTHER)[n % 2] for n in done]


class Inspector:
    """Objects to the first image of every trajectory."""

    def __init__(self, text: str | None = "#40"):
        self.text, self.asked = text, []

    def __call__(self, asked):
        self.asked += asked
        return [Inspection(self.text, "#50" if len(one.turns) == 1 else None) for one in asked]


def test_a_planner_says_what_every_step_does_and_when_it_is_enough():
    planner = Planner()
    drawn = sampler(inspections=False).with_outside(planner).sample(PROMPTS)
    for one in drawn:
        assert [turn.plan for turn in one.turns] == [PLAN, OTHER] and one.stopped == "model"
    assert len(planner.asked) == 3 * len(PROMPTS) and {one.prompt for one in planner.asked} == set(PROMPTS)
    assert {(len(one.turns), one.room) for one in planner.asked} == {(0, 5), (1, 4), (2, 3)}
    for one, alone in zip(drawn[:2], PROMPTS, strict=False):
        same(one, sampler(inspections=False).with_outside(Planner()).sample([alone])[0])


def test_the_model_still_corrects_what_somebody_else_plans():
    found = sampler().with_outside(Planner(4)).sample(PROMPTS * 3, seed=list(range(15)))
    assert any(turn.refines for one in found for turn in one.turns)
    for one in found:
        plans = [step.plan for step in one.steps]
        assert plans == [PLAN, OTHER, PLAN, OTHER][: len(plans)] and len(one.turns) <= 5
        assert one.stopped == "cap" or len(plans) == 4


def test_budgets_hold_and_a_planner_says_whether_it_was_done():
    for steps, stopped in ((3, "cap"), (2, "model")):
        planner = Planner(steps)
        (one,) = sampler(inspections=False, max_steps=2).with_outside(planner).sample(PROMPTS[:1])
        assert len(one.turns) == 2 and one.stopped == stopped
        assert [asked.room for asked in planner.asked] == [2, 1, 0]
    planner = Planner(1)
    (one,) = sampler(mode="plan_only").with_outside(planner).sample(PROMPTS[:1])
    assert one.turns[0].plan == PLAN and [asked.room for asked in planner.asked] == [1]
    planner = Planner(1)
    sampler(mode="single_pass").with_outside(planner).sample(PROMPTS[:1])
    assert planner.asked == []


@pytest.mark.parametrize("text", ["#40", None])
def test_an_inspector_says_what_it_sees_and_what_to_correct(text):
    inspector = Inspector(text)
    drawn = sampler().with_outside(inspector=inspector).sample(PROMPTS)
    for one in drawn:
        first, second, *rest = one.turns
        assert (first.after, second.refines, second.instruction) == (text, True, "#50")
        assert second.after is None, "nobody looks at what cannot be corrected any more"
        assert all(turn.after == text and not turn.refines for turn in rest) and not first.image_ok
        assert one.doubts is None, "the model had no choice"
    looked = [asked.turns[-1] for asked in inspector.asked]
    assert all(turn.after is None and not turn.refines and turn.image.any() for turn in looked)
    assert {turn.before for turn in looked} == {
        turn.before for one in drawn for turn in one.turns if not turn.refines
    }


def test_without_anybody_nothing_changes_and_both_may_be_outside():
    plain = sampler().sample(PROMPTS)
    for one, other in zip(plain, sampler().with_outside().sample(PROMPTS), strict=True):
        same(one, other)
        assert one.doubts == other.doubts and all(0 <= doubt <= 1 for doubt in one.doubts or ())
    assert any(one.doubts for one in plain)
    for one in sampler().with_outside(Planner(2), Inspector()).sample(PROMPTS):
        assert [turn.before for turn in one.turns] == [
            "<ins>#30</ins><des>#31</des>",
            "<refine>#50</refine>",
            "<ins>#40</ins><des>#41</des>",
        ]


def test_what_is_given_is_not_asked_about_and_what_follows_is():
    (plain,) = sampler().with_outside(Planner(3)).sample(PROMPTS[:1])
    planner = Planner(3)
    again = sampler().with_outside(planner).continue_from(plain, 1)
    same(plain, again)
    assert min(len(asked.turns) for asked in planner.asked) >= 1
    inspector = Inspector()
    unsaid = dataclasses.replace(plain, turns=(dataclasses.replace(plain.turns[0], after=None),))
    again = sampler().with_outside(inspector=inspector).continue_from(unsaid, 1)
    assert again.turns[0].after == "#40" and again.turns[1].instruction == "#50"
    np.testing.assert_array_equal(inspector.asked[0].turns[0].image, plain.turns[0].image)


@pytest.mark.parametrize(
    "answer, reason",
    [
        (Unsaid("no answer"), "no answer"),
        (None, "done before anything is drawn"),
        (Plan("#30" * 9, "#31"), "14 tokens, 7 fit"),
        (Plan("<des>", "#31"), "must not contain the token <des>"),
    ],
)
def test_a_trajectory_without_an_answer_is_given_up_and_the_others_go_on(answer, reason):
    def planner(asked):
        plans = Planner(1)(asked)
        return [answer if one.prompt == PROMPTS[1] else plan for one, plan in zip(asked, plans, strict=True)]

    one, finished, lost = sampler(inspections=False).with_outside(planner), {}, {}
    for progress in one.stream(PROMPTS):
        finished.update(progress.finished)
        lost.update(progress.lost)
    assert progress.done == 5 and sorted(finished) == [0, 2, 3, 4] and reason in lost[1]
    with pytest.raises(PromptError, match="trajectory 1 was given up: "):
        one.sample(PROMPTS)
    checked = []
    with pytest.raises(PromptError, match="must not contain the token </des>"):
        one.with_outside(lambda asked: checked.append(asked[0].check(Plan("#1" * 9, "</des>")))).sample(
            PROMPTS
        )
    inspector = lambda asked: [Inspection("#40" * 9) for _ in asked]  # noqa: E731
    with pytest.raises(PromptError, match="the text after an image has 9 tokens, 3 fit"):
        sampler().with_outside(inspector=inspector).sample(PROMPTS)
