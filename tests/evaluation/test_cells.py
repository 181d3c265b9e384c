"""Evaluation of the teacher, perfect and with planted errors: outcomes, scores, tables, comparisons."""

import dataclasses
import json

import pytest
from evaluation_fakes import TeacherSampler, evaluated, spoiled

from process_gen.evaluation import results, tables, writing
from process_gen.evaluation.pooling import Given, pooled
from process_gen.evaluation.results import ResultsError
from process_gen.evaluation.tasks.scenes import GROUPS
from process_gen.trajectory.stages import Mode

COSTS = ["steps", "Euler steps per image", "seconds per image"]


@pytest.fixture(scope="module")
def perfect(tmp_path_factory):
    (cell,), _ = evaluated(tmp_path_factory.mktemp("perfect"))
    return cell


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    cells, _ = evaluated(folder, spoiled("counting"), arms=("process", "single_pass"))
    return cells


@pytest.mark.parametrize("mode", [mode.value for mode in Mode])
def test_the_teacher_is_right_everywhere_in_every_mode(mode, tmp_path):
    (cell,), _ = evaluated(tmp_path, arms=(mode,), per_group=2)
    assert cell.arm == mode and list(cell.groups) == list(GROUPS)
    assert all(interval.mean == 1.0 for interval in cell.groups.values())
    assert cell.scores["score"].mean == cell.scores["score"].high == 1.0 and cell.scores["score"].low < 1
    assert cell.failures == {} and cell.missing == cell.unjudged == 0
    means, baseline = cell.means(), mode != "process"
    assert (means["steps"] == 1.0) == baseline
    assert means["sampling_steps"] == pytest.approx(20 * means["images"])
    assert (means["seconds"], means["stopped_by_cap"]) == (0.5, 0.0)
    assert (means["refined_images"] > 0) == (not baseline)


def test_errors_in_two_groups_cost_two_eighths_and_five_objects_cost_nothing(tmp_path):
    (cell,), _ = evaluated(tmp_path, spoiled("counting", "position", "five_objects"))
    wrong = {group for group, interval in cell.groups.items() if interval.mean == 0}
    assert wrong == {"counting", "position", "five_objects"}
    assert cell.scores["score"].mean == pytest.approx(6 / 8)
    assert cell.failures == {"missing": 18}
    assert [one.ok for one in cell.outcomes] == [one.group not in wrong for one in cell.outcomes]


def test_a_step_that_is_corrected_twice_is_one_correction_and_three_images(perfect, tmp_path):
    def twice(index, trajectory):
        turns = [
            one
            for turn in trajectory.turns
            for one in ([dataclasses.replace(turn, image=turn.image * 0), turn] if turn.refines else [turn])
        ]
        return dataclasses.replace(trajectory, turns=tuple(turns))

    (again,), _ = evaluated(tmp_path, TeacherSampler(spoil=twice))
    assert again.counts == perfect.counts and again.scores == perfect.scores
    for one, other in zip(again.outcomes, perfect.outcomes, strict=True):
        assert all(one.facts[name] == other.facts[name] for name in ("steps", "corrections"))
        assert one.facts["images"] == other.facts["images"] + other.facts["corrections"]


def test_scalars_name_task_and_arm_and_hold_what_the_scores_say(perfect):
    scalars = dict(perfect.scalars())
    assert scalars["scenes/process/score"] == 1.0
    assert all(scalars[f"scenes/process/group/{group}"] == 1.0 for group in GROUPS)
    assert scalars["scenes/process/steps"] == perfect.means()["steps"]
    assert scalars["scenes/process/process/inspect_precision"] == 1.0
    assert all(isinstance(value, float) for value in scalars.values())


def test_a_cell_survives_its_file_with_everything_derived(two, tmp_path):
    path = results.save(tmp_path / "results.json", two, {"created": "2026-01-01"})
    again = results.load(path)
    assert json.dumps([cell.to_json() for cell in again]) == json.dumps([cell.to_json() for cell in two])
    data = json.loads(path.read_text())
    assert data["schema"] == results.SCHEMA and data["cells"][0]["prompts"] == two[0].prompts
    counting = data["cells"][0]["groups"]["counting"]
    assert (counting["mean"], counting["n"]) == (0.0, 6)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("{}", "not a results file"),
        ("[1, 2]", "not a results file"),
        ("{", "results.json: Expecting"),
        ('{"kind": "process_gen evaluation", "schema": 99}', "schema 99; this version reads 3"),
        ('{"kind": "process_gen evaluation", "schema": 3}', "damaged results"),
        ('{"kind": "process_gen evaluation", "schema": 3, "cells": [{}]}', "damaged results"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ResultsError, match=message) as error:
        results.load(path)
    assert str(path) in str(error.value)
    with pytest.raises(ResultsError, match="gone.json"):
        results.load(tmp_path / "gone.json")


def test_group_and_process_tables_say_how_sure_they_are(two):
    headers, rows = tables.group_table(two)
    assert len(headers) == 4 and [row[0] for row in rows] == [*GROUPS, "score", *COSTS]
    assert rows[0][1] == 6 and str(rows[0][2]) == "1.00 [0.61, 1.00]"
    assert rows[-1] == ["seconds per image", None, "0.5", "0.5"]
    assert rows[len(GROUPS)][1] == 48, "images that count: five objects are no part of the score"
    headers, rows = tables.process_table(two)
    measures = {row[0]: row[1:] for row in rows}
    assert str(measures["inspect_precision"][0]).startswith("1.00 [")
    assert measures["failed: missing"] == ["6 of 54", "6 of 54"]


def test_comparisons_are_paired_and_carry_p_values(two, tmp_path):
    headers, rows = tables.comparison_table(two)
    assert rows == [["single_pass - process", 0.0, "+0.000 to +0.000", 48, "1.0000", "1.0000"]]
    others, _ = evaluated(tmp_path)
    better = dataclasses.replace(others[0], arm="better")
    (row,) = tables.comparison_table([two[0], better])[1]
    assert row[:2] == ["better - process", pytest.approx(1 / 8)]
    assert float(row[4]) == pytest.approx(2 / 2**6, abs=1e-4)
    assert tables.comparison_table([two[0]]) is None


def test_what_is_not_comparable_is_refused_with_the_reason(two, tmp_path):
    one = dataclasses.replace(two[0], arm="one")
    judge = {**one.judge, "revision": "other"}
    unlike = [
        (dataclasses.replace(one, judge=judge), "judge", "judge differ .scenes-parser 2 scenes and"),
        (dataclasses.replace(one, settings={"flow_steps": 4}), "flow_steps", "flow_steps differ .20 and 4."),
        (dataclasses.replace(one, prompts="others"), "prompts", "their prompts differ"),
        (dataclasses.replace(one, version="0"), "version", "their version differ"),
    ]  # fmt: skip
    for other, key, message in unlike:
        with pytest.raises(tables.Incomparable, match=message) as error:
            tables.check_comparable([two[0], other])
        assert f"--allow={key}" in str(error.value)
        tables.check_comparable([two[0], other], allow=[key])


def test_trainings_of_a_sweep_that_differ_in_their_seed_alone_are_one_arm(
    two, perfect, tmp_path, monkeypatch
):
    right, wrong = perfect, two[0]
    cells = {("a", 0): right, ("a", 1): wrong, ("b", 1): right, ("b", 0): right}
    lines = []
    for number, ((config, seed), cell) in enumerate(cells.items()):
        results.save(tmp_path / f"{number}.json", [cell], {})
        settings = {"config.seed": seed, "config": config, "config.x": 1}
        lines.append(json.dumps({"settings": settings, "results": f"{number}.json"}))
    (tmp_path / "results.jsonl").write_text("\n".join(lines))
    text, _ = writing.compare([str(tmp_path / "results.jsonl")], tmp_path, pool=["config.seed"])
    given = [Given("x", cell, dict(c=config, s=seed)) for (config, seed), cell in cells.items()]
    a, b = pooled(given, ["s"])
    assert (a.checkpoint["source"], b.checkpoint["source"]) == ("c=a", "c=b")
    (gap,) = tables.comparison_table([a, b])[1]
    assert gap[3] == len([one for one in a.outcomes if one.group in a.formulas["score"]]), "all are paired"
    assert gap[1] == pytest.approx(1 / 16) and "process b, config.x=1 - process a, config.x=1" in text
    assert len(a.outcomes) == a.judged == a.wanted == 2 * len(right.outcomes)
    assert a.counted == right.counted + wrong.counted and len(set(b.seeds)) == len(b.seeds)
    monkeypatch.setattr(tables, "FEW", 1)
    text, _ = writing.compare([str(tmp_path / "results.jsonl")], tmp_path, pool=["config.seed"])
    told = (tmp_path / "comparison.txt").read_text()
    assert "objects_kept" in told and "objects_kept" not in text, "many columns are for the file"
    with pytest.raises(
        ResultsError, match="has no setting 'config.sed' to pool over: .*config.seed, config.x"
    ):
        writing.compare([str(tmp_path / "results.jsonl")], tmp_path, pool=["config.sed"])


def test_what_is_not_one_experiment_is_not_pooled(perfect):
    def given(path="a", seed=0, **changes):
        return Given(path, dataclasses.replace(perfect, **changes), dict(c="a", s=seed))

    for changes, what in ((dict(prompts="others"), "prompts"), (dict(version="0"), "version")):
        with pytest.raises(tables.Incomparable, match=f"their {what} differ"):
            pooled([given(), given(seed=1, **changes)], ["s"])
        assert len(pooled([given(), given(seed=1, **changes)], ["s"], allow=[what])) == 1
    with pytest.raises(ResultsError, match=r"c=a: two cells of scenes and process have \['s'\] = \[0\]"):
        pooled([given(), given()], ["s"])
    with pytest.raises(ResultsError, match="b has no setting 's' to pool over"):
        pooled([given(), Given("b", perfect, {})], ["s"])
    before, after = pooled([given(), given("b")], ["s"])
    assert [one.checkpoint["source"] for one in (before, after)] == ["a: c=a", "b: c=a"]


def test_two_evaluations_of_one_checkpoint_are_told_apart(perfect, tmp_path):
    paths = []
    for name in ("before", "after"):
        paths.append(str(tmp_path / f"{name}.json"))
        results.save(paths[-1], [perfect], {})
    text, written = writing.compare(paths, tmp_path)
    assert all(path in text for path in paths) and written[0].name == "comparison.png"


def test_images_of_another_program_have_no_settings_to_tell(perfect):
    foreign = dataclasses.replace(
        perfect, arm="images", settings={}, checkpoint={"source": "/their/images", "which": ""}
    )
    assert tables.labels([perfect, foreign])[1] == "images /their/images"
    tables.check_comparable([perfect, foreign])


def test_bars_hold_every_group_and_the_score(two):
    bars = tables.bars(two)
    assert list(bars["process"]) == [*GROUPS, "score"]
    mean, low, high = bars["single_pass"]["score"]
    assert low < mean < high


def test_unscored_groups_alone_have_no_score_anywhere(tmp_path):
    (cell,), _ = evaluated(tmp_path, per_group=2, options={"groups": "five_objects"})
    assert cell.scores == {} and "scenes/process/score" not in dict(cell.scalars())
    assert [row[0] for row in tables.group_table([cell])[1]] == ["five_objects", *COSTS]
    assert list(tables.bars([cell])["process"]) == ["five_objects"]


def test_stops_are_calibrated_on_trajectories_cut_short_on_purpose(tmp_path):
    """A trajectory cut after its first step stopped too early; one that goes on past its end too late."""

    def cut(index, trajectory):
        if index % 2:
            return dataclasses.replace(trajectory, turns=trajectory.steps[0].turns)
        more = dataclasses.replace(trajectory.steps[-1].draft, image=trajectory.image)
        return dataclasses.replace(trajectory, turns=(*trajectory.turns, more))

    (cell,), _ = evaluated(tmp_path, TeacherSampler(spoil=cut), options={"groups": "four_objects"})
    assert cell.scores["score"].mean == 0.5
    states = cell.states
    assert (states["stopped_wrong"].mean, states["stopped_too_late"].mean) == (0.5, 0.5)
    assert states["late_and_lost"].mean == 0 and states["stopped_by_cap"].mean == 0
    assert states["score_at_step_1"].mean == 0


def test_two_seeds_are_two_images_of_a_prompt_and_one_cluster(tmp_path):
    (cell,), _ = evaluated(tmp_path, seeds=(0, 1), per_group=3)
    assert len(cell.outcomes) == 2 * 27 and {one.seed for one in cell.outcomes} == {0, 1}
    once, _ = evaluated(tmp_path / "once", per_group=3)
    assert cell.groups["counting"] == once[0].groups["counting"], "equal images of a prompt add nothing"
