"""Detection, correction and consistency on trajectories whose truth is known."""

import pytest
from evaluation_fakes import canvas, sampled

from process_gen.evaluation.process import Counts, count
from process_gen.scenes.grammar import read_request
from process_gen.scenes.prompts import sample_request
from process_gen.scenes.requests import CATEGORIES
from process_gen.scenes.teacher import teach
from process_gen.trajectory.markup import write_plan, write_refine
from process_gen.trajectory.sampled import SampledStep, SampledTrajectory
from process_gen.trajectory.stages import Mode, Plan


def counts_of(prompt, *steps):
    """Steps are (description, things of the draft, things of the correction or None)."""
    made = []
    for description, draft, refined in steps:
        plan = description if description.startswith("<") else write_plan(Plan("go on", description))
        corrected = refined is not None
        made.append(
            SampledStep(
                plan,
                canvas(*draft),
                "looks so",
                write_refine("mend it") if corrected else None,
                canvas(*refined) if corrected else None,
            )
        )
    request = read_request(prompt)
    trajectory = SampledTrajectory(prompt, Mode.PROCESS, 0, tuple(made), "model")
    return count(trajectory, request)


RED, BLUE = "red circle at b2", "blue circle at b2"


@pytest.mark.parametrize(
    "draft, refined, detection, correction",
    [
        (RED, None, "passed", None),
        (RED, RED, "false_alarms", "kept_right"),
        (RED, BLUE, "false_alarms", "spoiled"),
        (BLUE, None, "missed", None),
        (BLUE, RED, "caught", "fixed"),
        (BLUE, BLUE, "caught", "still_wrong"),
    ],
)
def test_each_step_falls_into_one_box_of_detection_and_of_correction(draft, refined, detection, correction):
    drawn, corrected = ([text.replace("at ", "")] if text else None for text in (draft, refined))
    counts = counts_of("a red circle", (RED, drawn, corrected))
    boxes = ("caught", "missed", "false_alarms", "passed")
    assert {name: getattr(counts, name) for name in boxes} == dict.fromkeys(boxes, 0) | {detection: 1}
    boxes = ("fixed", "still_wrong", "kept_right", "spoiled")
    expected = dict.fromkeys(boxes, 0) | ({correction: 1} if correction else {})
    assert {name: getattr(counts, name) for name in boxes} == expected
    # The only step is the last one, and here the plan asks for what the prompt does.
    assert {name: getattr(counts, f"final_{name}") for name in boxes} == expected
    assert (counts.drafts, counts.wrong_drafts) == (1, int(draft == BLUE))
    assert counts.right_at == {0: int((refined or draft) == RED)}


def test_the_teacher_notices_all_but_its_slips_and_corrects_all_that_it_notices(rng):
    total, planted, misplanned, slips = Counts(), 0, 0, 0
    for index in range(180):
        request = sample_request(rng, "default", CATEGORIES[index % len(CATEGORIES)])
        trajectory = teach(request, rng, "default", wrong=0.3, misplan=0.2, slip=0.15)
        misplanned += sum(not step.plan_ok for step in trajectory.steps)
        planted += sum(step.refine is not None for step in trajectory.steps)
        slips += sum(not step.sketch_ok and step.refine is None for step in trajectory.steps)
        total += count(sampled(trajectory), request)
    assert planted > 50 and misplanned > 20 and slips > 20
    assert (total.caught, total.missed, total.false_alarms) == (planted, slips, 0)
    assert (total.fixed, total.still_wrong, total.spoiled, total.kept_right) == (planted, 0, 0, 0)
    assert total.malformed_plans == total.unread == 0 and total.plans == total.steps == total.drafts
    assert total.final_plans == 180 > total.final_plans_right > 180 - misplanned
    # A slip may spoil something that stood before; nothing else does.
    assert total.to_keep - slips <= total.kept <= total.to_keep and total.to_keep > 100
    assert total.to_repair == slips and total.repaired > 0
    shares = total.shares()
    assert shares["inspect_precision"].mean == 1
    assert shares["inspect_recall"].mean == pytest.approx(planted / (planted + slips))
    # A thing in another place than planned may satisfy the prompt all the same.
    assert total.final_fixed > 0 == total.final_still_wrong == total.final_spoiled


@pytest.mark.parametrize(
    "description, draft, refined, detection, correction",
    [
        # The plan itself is wrong: in colour, in number, or because something stands there already.
        (BLUE, ["blue circle b2"], None, "missed", None),
        (BLUE, ["blue circle b2"], ["red circle b2"], "caught", "fixed"),
        (BLUE, ["blue circle b2"], ["red star b2"], "caught", "still_wrong"),
        (
            f"{RED}, red circle at c3",
            ["red circle b2", "red circle c3"],
            ["red circle b2"],
            "caught",
            "fixed",
        ),
        (f"{RED}, blue star at b2", ["blue star b2"], ["red circle b2", "blue star c3"], "caught", "fixed"),
        (f"{RED}, blue star at b2", ["blue star b2"], None, "missed", None),
    ],
)
def test_a_wrong_plan_is_found_out_by_the_prompt(description, draft, refined, detection, correction):
    counts = counts_of("a red circle and a blue star", (description, draft, refined))
    assert (counts.drafts, counts.wrong_drafts, getattr(counts, detection)) == (1, 1, 1)
    assert correction is None or getattr(counts, correction) == 1


def test_what_contradicts_the_prompt_before_the_end_may_be_meant_to_change():
    steps = [(BLUE, ["blue circle b2"], None), (RED, ["red circle b2"], None)]
    counts = counts_of("a red circle", *steps)
    assert (counts.passed, counts.wrong_drafts, counts.to_repair) == (2, 0, 0)
    counts = counts_of("a red circle", (BLUE, ["blue circle b2"], ["red circle b2"]), steps[1])
    assert (counts.caught, counts.fixed, counts.to_repair) == (1, 1, 0)


def test_what_the_next_plan_drops_need_not_be_kept_and_the_rest_must():
    counts = counts_of(
        "a red circle and a blue star",
        ("red circle at b2, green ring at c3", ["red circle b2", "green ring c3"], None),
        # The ring is to go; the circle should stay and has moved.
        ("red circle at b2, blue star at d4", ["red circle b3", "blue star d4"], None),
    )
    assert (counts.to_keep, counts.kept) == (1, 0)
    assert counts.right_at == {0: 1, 1: 0} and counts.to_repair == 0
    assert (counts.final_plans, counts.final_plans_right) == (1, 1)


def test_a_wrong_state_that_the_next_step_repairs_counts_as_repaired():
    steps = [("red circle at b2", ["red ring b2"], None)]
    repaired = counts_of("a red circle", *steps, ("red circle at b2", ["red circle b2"], None))
    assert (repaired.missed, repaired.to_repair, repaired.repaired) == (1, 1, 1)
    lasting = counts_of("a red circle", *steps, ("red circle at b2", ["red ring b2"], None))
    assert (lasting.missed, lasting.to_repair, lasting.repaired) == (2, 1, 0)


def test_malformed_and_unreadable_plans_are_counted_and_left_out():
    counts = counts_of("a red circle", ("<ins>go on", ["red circle b2"], None))
    assert (counts.plans, counts.malformed_plans, counts.unread, counts.drafts) == (1, 1, 0, 0)
    counts = counts_of("a red circle", ("something nice", ["red circle b2"], ["red circle b2"]))
    assert (counts.malformed_plans, counts.unread, counts.drafts) == (0, 1, 0)
    assert (counts.final_plans, counts.final_kept_right) == (0, 1), "the judge needs no plan"
    empty = SampledTrajectory("a red circle", Mode.PROCESS, 0, (SampledStep("<ins>"),), "cap")
    assert count(empty, read_request("a red circle")).malformed_plans == 1


def test_counts_add_up_and_survive_json():
    one = counts_of("a red circle", (RED, ["red circle b2"], None))
    steps = [(RED, ["blue circle b2"], ["red circle b2"]), (RED, ["red circle b2"], None)]
    two = counts_of("a red circle", *steps)
    total = one + two
    assert (total.steps, total.drafts, total.passed, total.caught) == (3, 3, 2, 1)
    assert total.states_at == {0: 2, 1: 1} and total.right_at == {0: 2, 1: 1}
    assert Counts.from_json(total.to_json()) == total
