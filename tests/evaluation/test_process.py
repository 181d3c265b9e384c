"""Detection, correction and consistency on trajectories whose truth is known."""

import collections
import json

import pytest
from evaluation_fakes import canvas, sampled

from process_gen.evaluation.counts import Counts, counts_from_json, counts_to_json, shares_of_counts
from process_gen.evaluation.process import count
from process_gen.evaluation.reading import KINDS
from process_gen.evaluation.statistics import shares_of
from process_gen.scenes.grammar import read_request
from process_gen.scenes.prompts import sample_request
from process_gen.scenes.requests import categories
from process_gen.scenes.teacher import teach
from process_gen.trajectory.markup import Plan, write_plan
from process_gen.trajectory.sampled import SampledTrajectory
from process_gen.trajectory.stages import Turn, refinement


def counts_of(prompt, *steps):
    """Steps are (description or (instruction, description), things of the draft, of each correction).

    No correction is None, and one is a list of things; several are a list of lists.
    """
    turns = []
    for said, drawn, corrections in steps:
        said = ("go on", said) if isinstance(said, str) else said
        plan = said[1] if said[1].startswith("<") else write_plan(Plan(*said))
        turns.append(Turn(canvas(*drawn), plan, "looks so"))
        several = corrections is not None and (not corrections or isinstance(corrections[0], list))
        for things in corrections if several else filter(None, [corrections]):
            turns.append(refinement(canvas(*things), "mend it", "looks so"))
    return count(SampledTrajectory(prompt, tuple(turns)), read_request(prompt))


def counted(counts, names, prefix=""):
    """Those of some counts that are not 0."""
    return {name: number for name in names if (number := counts[prefix + name])}


def by(counts, name):
    """The counts of a name by kind or step index."""
    return {key[1]: number for key, number in counts.items() if key[0] == name}


DETECTIONS = ("caught", "missed", "false_alarms", "passed")
CORRECTIONS = ("fixed", "still_wrong", "kept_right", "spoiled")
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
    assert counted(counts, DETECTIONS) == {detection: 1}
    expected = {correction: 1} if correction else {}
    assert counted(counts, CORRECTIONS) == expected
    # The only step is the last one, and here the plan asks for what the prompt does.
    assert counted(counts, CORRECTIONS, "final_") == expected
    assert (counts["drafts"], counts["wrong_drafts"]) == (1, int(draft == BLUE))
    assert by(counts, "right_at") == {0: int((refined or draft) == RED)}


def test_the_teacher_notices_all_but_its_slips_and_corrects_all_that_it_notices(rng):
    total, planted, misplanned, slips = Counts(), 0, 0, 0
    for index in range(180):
        request = sample_request(rng, "default", categories("default")[index % 9])
        trajectory = teach(request, rng, wrong=0.3, misplan=0.2, slip=0.15)
        mistakes = [fact for fact in trajectory.metadata["mistakes"] if fact]
        misplanned += sum(fact["planned"] for fact in mistakes)
        planted += sum(len(step.refines) == 1 for step in trajectory.steps)
        slips += sum(not fact["noticed"] for fact in mistakes)
        total += count(sampled(trajectory), request)
    assert planted > 50 and misplanned > 20 and slips > 20
    assert (total["caught"], total["missed"], total["false_alarms"]) == (planted, slips, 0)
    assert (total["fixed"], total["still_wrong"], total["spoiled"], total["kept_right"]) == (planted, 0, 0, 0)
    assert (
        total["malformed_plans"] == total["unread"] == 0
        and total["plans"] == total["steps"] == total["drafts"]
    )
    assert total["final_plans"] == 180 > total["final_plans_right"] > 180 - misplanned
    # A slip may spoil something that stood before; nothing else does.
    assert total["to_keep"] - slips <= total["kept"] <= total["to_keep"] and total["to_keep"] > 100
    assert total["to_repair"] == slips and total["repaired"] > 0
    # Every plan of the teacher goes by the canvas, but for a slip that nobody saw.
    assert total["plans_after_refine"] > 50 and total["plans_otherwise"] > 100
    assert total["wrong_after_refine"] == total["wrong_otherwise"] == 0
    shares = shares_of([shares_of_counts(total)])
    assert shares["inspect_precision"].mean == 1
    assert shares["inspect_recall"].mean == pytest.approx(planted / (planted + slips))
    # A thing in another place than planned may satisfy the prompt all the same.
    assert total["final_fixed"] > 0 == total["final_still_wrong"] == total["final_spoiled"]


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
    assert (counts["drafts"], counts["wrong_drafts"], counts[detection]) == (1, 1, 1)
    assert correction is None or counts[correction] == 1


def test_what_contradicts_the_prompt_before_the_end_may_be_meant_to_change():
    steps = [(BLUE, ["blue circle b2"], None), (RED, ["red circle b2"], None)]
    counts = counts_of("a red circle", *steps)
    assert (counts["passed"], counts["wrong_drafts"], counts["to_repair"]) == (2, 0, 0)
    counts = counts_of("a red circle", (BLUE, ["blue circle b2"], ["red circle b2"]), steps[1])
    assert (counts["caught"], counts["fixed"], counts["to_repair"]) == (1, 1, 0)


def test_what_the_next_plan_drops_need_not_be_kept_and_the_rest_must():
    counts = counts_of(
        "a red circle and a blue star",
        ("red circle at b2, green ring at c3", ["red circle b2", "green ring c3"], None),
        # The ring is to go; the circle should stay and has moved.
        ("red circle at b2, blue star at d4", ["red circle b3", "blue star d4"], None),
    )
    assert (counts["to_keep"], counts["kept"]) == (1, 0)
    assert by(counts, "right_at") == {0: 1, 1: 0} and counts["to_repair"] == 0
    assert (counts["final_plans"], counts["final_plans_right"]) == (1, 1)


def test_a_wrong_state_that_the_next_step_repairs_counts_as_repaired():
    steps = [("red circle at b2", ["red ring b2"], None)]
    repaired = counts_of("a red circle", *steps, ("red circle at b2", ["red circle b2"], None))
    assert (repaired["missed"], repaired["to_repair"], repaired["repaired"]) == (1, 1, 1)
    lasting = counts_of("a red circle", *steps, ("red circle at b2", ["red ring b2"], None))
    assert (lasting["missed"], lasting["to_repair"], lasting["repaired"]) == (2, 1, 0)


def test_malformed_and_unreadable_plans_are_counted_and_left_out():
    counts = counts_of("a red circle", ("<ins>go on", ["red circle b2"], None))
    assert (counts["plans"], counts["malformed_plans"], counts["unread"], counts["drafts"]) == (1, 1, 0, 0)
    counts = counts_of("a red circle", ("something nice", ["red circle b2"], ["red circle b2"]))
    assert (counts["malformed_plans"], counts["unread"], counts["drafts"]) == (0, 1, 0)
    assert (counts["final_plans"], counts["final_kept_right"]) == (0, 1), "the judge needs no plan"
    counts = counts_of("a red circle", ("<ins>", [], None))
    assert (counts["malformed_plans"], counts["drafts"], counts["final_plans"]) == (1, 0, 0)


@pytest.mark.parametrize(
    "corrections, box",
    [
        ([["blue circle b2"], ["red circle b2"]], "fixed"),
        ([["red circle b2"], ["blue circle b2"]], "still_wrong"),
        ([["blue star b2"], ["green circle b2"], ["red circle b2"]], "fixed"),
    ],
)
def test_several_corrections_of_a_draft_count_as_what_the_last_one_leaves(corrections, box):
    counts = counts_of("a red circle", (RED, ["blue circle b2"], corrections))
    assert (counts["steps"], counts["drafts"], counts["wrong_drafts"], counts["caught"]) == (1, 1, 1, 1)
    for prefix in ("", "final_"):
        assert counted(counts, CORRECTIONS, prefix) == {box: 1}
    assert by(counts, "right_at") == {0: int(box == "fixed")}
    spoiled = counts_of("a red circle", (RED, ["red circle b2"], corrections[:1]))
    kept = corrections[0] == ["red circle b2"]
    assert (spoiled["false_alarms"], spoiled["spoiled"], spoiled["kept_right"]) == (
        1,
        int(not kept),
        int(kept),
    )


CORRECTED = (BLUE, ["blue circle b2"], ["red circle b2"])
"""The plan said blue, and was corrected."""
FAILED = (RED, ["blue circle b2"], ["green circle b2"])
TWICE = (RED, ["blue circle b2"], [["green circle b2"], ["red circle b2"]])


@pytest.mark.parametrize(
    "first, instruction, description, wrong",
    [
        # By what the correction left, and by what it corrected.
        (CORRECTED, "add a star at d4", "red circle at b2, blue star at d4", 0),
        (CORRECTED, "add a star at d4", "blue circle at b2, blue star at d4", 1),
        (CORRECTED, "add a star left of the circle at b2 at a1", "blue circle at b2, blue star at a1", 1),
        # What the instruction changes may differ, what it does not say may not.
        (CORRECTED, "make the circle at b2 blue", BLUE, 0),
        (CORRECTED, "move the circle from b2 to c3", "red circle at c3", 0),
        (CORRECTED, "move it to c3", "red circle at c3", 1),
        (CORRECTED, "swap b2 and c3", "red circle at c3", 0),
        (CORRECTED, "add a star at d4", "blue star at d4", 1),
        (CORRECTED, "add a star at d4", "red circle at b2, blue star at d4, red ring at a1", 1),
        # A correction that failed: the plan may go by what stands or by what should.
        (FAILED, "add a star at d4", f"{RED}, blue star at d4", 0),
        (FAILED, "add a star at d4", "green circle at b2, blue star at d4", 0),
        (FAILED, "add a star at d4", f"{BLUE}, blue star at d4", 1),
        # Corrected twice: the last one counts.
        (TWICE, "add a star at d4", "green circle at b2, blue star at d4", 1),
    ],
)
def test_a_plan_goes_by_the_canvas_or_does_not(first, instruction, description, wrong):
    second = ((instruction, description), ["red circle b2"], None)
    counts = counts_of("a red circle and a blue star", first, second)
    assert (counts["plans_after_refine"], counts["wrong_after_refine"]) == (1, wrong)
    assert (counts["plans_otherwise"], counts["wrong_otherwise"]) == (0, 0)
    shares = shares_of([shares_of_counts(counts)])
    assert shares["next_plan_wrong_after_refine"].mean == wrong
    assert 0 <= shares["next_plan_wrong_after_refine"].low < shares["next_plan_wrong_after_refine"].high <= 1
    assert "next_plan_wrong_otherwise" not in shares


def test_plans_after_steps_without_a_correction_are_counted_apart():
    steps = [
        (("go on", RED), ["red circle b2"], None),
        (("add a star at d4", f"{RED}, blue star at d4"), [], None),
    ]
    counts = counts_of("a red circle and a blue star", *steps, (("go on", BLUE), [], None))
    assert (counts["plans_after_refine"], counts["plans_otherwise"], counts["wrong_otherwise"]) == (0, 2, 1)
    assert shares_of_counts(counts)["next_plan_wrong_otherwise"] == (1, 2)
    # A slip that nobody saw may be put right without a word.
    slip = (RED, ["blue circle b2"], None)
    after = counts_of("a red circle", slip, (RED, ["red circle b2"], None))
    assert (after["plans_otherwise"], after["wrong_otherwise"]) == (1, 0)
    # What cannot be read is left out.
    unread = counts_of("a red circle", slip, ("something nice", ["red circle b2"], None))
    assert unread["plans_otherwise"] == 0


def test_every_planted_kind_is_counted_as_what_it_is_and_named_so(rng):
    """The teacher plants one mistake in a draft, names it and corrects it; or lets it slip."""
    planted, slipped, total = collections.Counter(), collections.Counter(), Counts()
    for index in range(240):
        request = sample_request(rng, "default", categories("default")[index % 9])
        trajectory = teach(request, rng, wrong=0.4, misplan=0.0, slip=0.2, detour=0.0)
        for fact in filter(None, trajectory.metadata["mistakes"]):
            kind = "missing or extra" if fact["kind"] == "count" else fact["kind"]
            (planted if fact["noticed"] else slipped)[kind] += 1
        total += count(sampled(trajectory), request)
    for kind in ("colour", "shape", "place"):
        assert total["errors", kind] == planted[kind] + slipped[kind] > 5, kind
        assert total["claims", kind] == total["named", kind] == planted[kind] > 5, kind
        shares = shares_of_counts(total)
        assert shares[f"inspect_precision_{kind}"] == (planted[kind], planted[kind])
        assert shares[f"inspect_recall_{kind}"] == (planted[kind], total["errors", kind])
        assert shares[f"inspect_f1_{kind}"] == (2 * planted[kind], planted[kind] + total["errors", kind])
    both = sum(planted[kind] for kind in ("missing", "extra", "missing or extra"))
    assert sum(total["named", kind] for kind in ("missing", "extra")) == both
    assert set(by(total, "errors")) | set(by(total, "claims")) <= set(KINDS), (
        "nothing is called by another name"
    )
    assert not by(total, "alarms") and sum(by(total, "claims").values()) == total["caught"]
    assert shares_of_counts(total)["inspect_f1"] == (
        2 * total["caught"],
        2 * total["caught"] + total["missed"],
    )


def objected(inspection: str, correction: str, draft, refined, planned=RED):
    """The counts of one step whose inspection says so, after another one."""
    turns = [
        Turn(canvas(*draft), write_plan(Plan("go on", planned)), inspection),
        refinement(canvas(*refined), correction, None),
    ]
    return count(SampledTrajectory("a red circle", tuple(turns)), read_request("a red circle"))


@pytest.mark.parametrize(
    "inspection, correction, claim",
    [
        ("the circle at b2 is blue, not red", "make the circle at b2 red", "colour"),
        ("there should be two red circles, not one: the one at c3 is missing", "x", "missing"),
        ("there should be one red circle, not two: the one at c3 is extra", "x", "extra"),
        ("something is off", "move the circle at b2 to c3", "place"),
        ("something is off", "change the circle at b2 to a star", "shape"),
        ("something is off", "change the circle at b2 to blue", "colour"),
        ("something is off", "add the missing blue star left of the circle at b2 at a2", "missing"),
        ("something is off", "erase the circle at b2", "extra"),
        ("something is off", "mend it", "other"),
    ],
)
def test_a_false_alarm_counts_for_the_kind_that_it_names(inspection, correction, claim):
    counts = objected(inspection, correction, ["red circle b2"], ["blue circle b2"])
    assert (by(counts, "claims"), by(counts, "alarms"), counts["named", claim]) == ({claim: 1}, {claim: 1}, 0)
    shares = shares_of_counts(counts)
    assert shares[f"false_alarms_{claim}"] == shares["over_corrected"] == (1, 1)
    assert shares["over_correction_harm"] == (1, 1) and shares[f"inspect_precision_{claim}"] == (0, 1)
    harmless = shares_of_counts(objected(inspection, correction, ["red circle b2"], ["red circle b2"]))
    assert harmless["over_corrected"] == (1, 1) and harmless["over_correction_harm"] == (0, 1)


def test_an_objection_to_another_kind_finds_the_draft_wrong_and_names_it_wrongly():
    counts = objected("the red circle at b2 is missing", "x", ["blue circle b2"], ["red circle b2"])
    assert (by(counts, "errors"), by(counts, "claims"), counts["named", "colour"]) == (
        {"colour": 1},
        {"missing": 1},
        0,
    )
    assert counts["caught"] == 1 and by(counts, "alarms") == {}
    shares = shares_of_counts(counts)
    assert shares["inspect_recall"] == (1, 1) and shares["inspect_recall_colour"] == (0, 1)
    assert "over_corrected" not in shares, "no draft was right"
    plan = objected("anything", "x", ["blue circle b2"], ["red circle b2"], planned=BLUE)
    assert (by(plan, "errors"), by(plan, "claims"), by(plan, "named")) == (
        {"plan": 1},
        {"plan": 1},
        {"plan": 1},
    )


def test_errors_grow_and_last_as_they_were_planted():
    steps = [
        (RED, ["red circle b2", "green ring a1"], None),  # the ring does not last
        (f"{RED}, blue star at c3", ["red circle b2", "blue star d4"], None),  # new error
        (f"{RED}, blue star at c3", ["red circle b2", "blue star d4"], None),  # the same again
        (f"{RED}, blue star at c3", ["red circle b2", "blue star c3"], None),  # right in the end
    ]
    shares = shares_of_counts(counts_of("a red circle and a blue star", *steps))
    assert shares["objects_in_final"] == (3, 6), "the circle of three states"
    assert [shares[f"right_at_step_{k}"] for k in (1, 2, 3, 4)] == [(0, 1), (0, 1), (0, 1), (1, 1)]
    assert shares["new_errors_at_step_1"] == (1, 1) and "new_errors_at_step_3" not in shares
    assert [shares[f"objects_lacking_at_step_{k}"] for k in (1, 2, 3, 4)] == [(0, 1), (1, 2), (1, 2), (0, 2)]
    later = counts_of("a red circle and a blue star", (RED, ["red circle b2"], None), *steps[1:2])
    later = shares_of_counts(later)
    assert (later["new_errors_at_step_1"], later["new_errors_at_step_2"]) == ((0, 1), (1, 1))


@pytest.mark.parametrize("kept", [1, 2])
def test_trajectories_that_are_cut_short_count_what_is_left_of_them(rng, kept):
    total = Counts()
    for _ in range(60):
        request = sample_request(rng, "default", "four_objects")
        trajectory = sampled(teach(request, rng, wrong=0, misplan=0, slip=0, detour=0, pair=0))
        assert len(trajectory.steps) == 4
        turns = tuple(turn for step in trajectory.steps[:kept] for turn in step.turns)
        total += count(SampledTrajectory(request.text, turns), request)
    shares = shares_of_counts(total)
    assert shares["final_plan_right"] == (0, 60) and shares["wrong_drafts"] == (0, 60 * kept)
    assert f"right_at_step_{kept + 1}" not in shares and shares[f"right_at_step_{kept}"] == (60, 60)
    assert ("objects_in_final" in shares) == (kept > 1)


def test_counts_add_up_and_survive_json():
    one = counts_of("a red circle", (RED, ["red circle b2"], None))
    steps = [(RED, ["blue circle b2"], ["red circle b2"]), (RED, ["red circle b2"], None)]
    two = counts_of("a red circle", *steps)
    total = one + two
    assert (total["steps"], total["drafts"], total["passed"], total["caught"]) == (3, 3, 2, 1)
    assert by(total, "states_at") == {0: 2, 1: 1} and by(total, "right_at") == {0: 2, 1: 1}
    assert counts_from_json(json.loads(json.dumps(counts_to_json(total)))) == total
