"""Evaluation of the teacher, perfect and with planted errors."""

import dataclasses

import pytest
from evaluation_fakes import BENCHMARK, spoiled, teacher

from process_gen.evaluation.benchmark import GROUPS, SCORED_GROUPS
from process_gen.evaluation.evaluator import Scores, evaluate
from process_gen.trajectory.stages import Mode


@pytest.fixture(scope="module")
def perfect():
    return evaluate(teacher(), BENCHMARK)


@pytest.mark.parametrize("mode", list(Mode))
def test_the_teacher_is_right_everywhere_in_every_mode(mode):
    scores = evaluate(teacher(mode), BENCHMARK, mode)
    assert scores.mode == mode.value
    assert list(scores.groups) == list(GROUPS)
    assert all(interval.mean == 1.0 for interval in scores.groups.values())
    assert scores.score.mean == scores.score.high == 1.0 and scores.score.low < 1
    assert scores.failures == {}
    assert all(trajectory.verdict["ok"] for trajectory in scores.trajectories)
    baseline = mode is not Mode.PROCESS
    means = scores.means()
    assert (means["steps"] == 1.0) == baseline
    assert means["sampling_steps"] == pytest.approx(20 * means["images_drawn"])
    assert (means["seconds"], means["stopped_by_cap"]) == (0.5, 0.0)
    assert (means["refined_images"] > 0) == (means["refined_steps"] > 0) == (not baseline)


def test_errors_in_two_groups_cost_two_eighths_and_five_objects_cost_nothing():
    scores = evaluate(spoiled("counting", "position", "five_objects"), BENCHMARK)
    wrong = {group for group, interval in scores.groups.items() if interval.mean == 0}
    assert wrong == {"counting", "position", "five_objects"}
    assert scores.score.mean == pytest.approx(6 / 8)
    assert scores.failures == {"missing": 18}
    assert [one.ok for one in scores.outcomes] == [one.group not in wrong for one in scores.outcomes]


def test_scalars_name_the_mode_and_hold_what_the_scores_say(perfect):
    scalars = dict(perfect.scalars())
    assert scalars["process/score"] == 1.0
    assert all(scalars[f"process/score/{group}"] == 1.0 for group in SCORED_GROUPS)
    assert scalars["process/steps"] == perfect.means()["steps"]
    assert scalars["process/process/inspect_precision"] == 1.0
    assert all(isinstance(value, float) for value in scalars.values())


def test_scores_survive_json_with_everything_derived(perfect):
    data = perfect.to_json()
    again = Scores.from_json("process", data)
    assert again.to_json() == data
    assert dataclasses.replace(again, trajectories=perfect.trajectories) == perfect


def test_a_selection_shows_wrong_ones_of_every_group_first_in_turn():
    scores = evaluate(spoiled("colors"), BENCHMARK)
    picked = scores.selection(10)
    assert len(picked) == 10
    assert picked[0].verdict == scores.trajectories[18].verdict and not picked[0].verdict["ok"]
    assert {t.verdict["group"] for t in picked} == set(GROUPS), "every group is there"
    assert len({id(t) for t in scores.selection(1000)}) == len(BENCHMARK.tasks)


def test_a_step_that_is_corrected_twice_is_one_correction_and_three_images():
    def twice(index, trajectory):
        turns = [
            one
            for turn in trajectory.turns
            for one in ([dataclasses.replace(turn, image=turn.image * 0), turn] if turn.refines else [turn])
        ]
        return dataclasses.replace(trajectory, turns=tuple(turns))

    once, again = evaluate(teacher(), BENCHMARK), evaluate(teacher(spoil=twice), BENCHMARK)
    assert again.counts == once.counts and again.score == once.score
    for one, other in zip(again.outcomes, once.outcomes, strict=True):
        assert (one.steps, one.corrections) == (other.steps, other.corrections)
        assert one.images == other.images + other.corrections
    assert again.means()["images_drawn"] > once.means()["images_drawn"]


def test_predict_functions_that_answer_something_else_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        evaluate(lambda prompts, seeds: teacher()(prompts[:1], seeds[:1]), BENCHMARK)
    with pytest.raises(ValueError, match="answered"):
        evaluate(lambda prompts, seeds: teacher()(prompts, seeds)[::-1], BENCHMARK)
