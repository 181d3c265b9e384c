"""Results files, tables and comparisons."""

import dataclasses
import json

import pytest
from evaluation_fakes import BENCHMARK, spoiled, teacher

from process_gen.evaluation import results
from process_gen.evaluation.benchmark import GROUPS, make_benchmark
from process_gen.evaluation.evaluator import evaluate
from process_gen.evaluation.results import Results, ResultsError
from process_gen.trajectory.stages import Mode

COSTS = ("steps", "sampling steps", "seconds per image")


@pytest.fixture(scope="module")
def made():
    modes = {
        "process": evaluate(teacher(), BENCHMARK),
        "single_pass": evaluate(spoiled("counting"), BENCHMARK, Mode.SINGLE_PASS),
    }
    checkpoint = {"source": "somewhere", "which": "ema"}
    return Results(checkpoint, {"seed": 1}, {"flow_steps": 20}, BENCHMARK.to_json(), modes, "2026-01-01")


def test_a_file_reads_back_the_same(made, tmp_path):
    path = made.save(tmp_path / "results.json")
    again = Results.load(path)
    assert again.to_json() == made.to_json()
    data = json.loads(path.read_text())
    assert data["schema"] == results.SCHEMA and data["benchmark"]["fingerprint"] == BENCHMARK.fingerprint
    assert data["modes"]["single_pass"]["groups"]["counting"]["mean"] == 0
    assert data["modes"]["process"]["groups"]["counting"]["n"] == 6
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("{}", "not a results file"),
        ("[1, 2]", "not a results file"),
        ("{", "results.json: Expecting"),
        ('{"kind": "process_gen evaluation", "schema": 99}', "schema 99; this version reads 1"),
        ('{"kind": "process_gen evaluation", "schema": 1}', "damaged results"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ResultsError, match=message) as error:
        Results.load(path)
    assert str(path) in str(error.value)
    with pytest.raises(ResultsError, match="gone.json"):
        Results.load(tmp_path / "gone.json")


def test_group_and_process_tables_say_how_sure_they_are(made):
    headers, rows = results.group_table(made.modes)
    assert len(headers) == 4 and [row[0] for row in rows] == [*GROUPS, "score", *COSTS]
    assert rows[0][1] == 6 and str(rows[0][2]) == "1.00 [0.61, 1.00]"
    assert rows[-1] == ["seconds per image", None, "0.5", "0.5"]
    headers, rows = results.process_table(made.modes)
    measures = {row[0]: row[1:] for row in rows}
    assert str(measures["inspect_precision"][0]).startswith("1.00 [")
    assert measures["failed: missing"] == ["0 of 54", "6 of 54"]


def test_the_difference_is_paired_and_needs_the_same_prompts(made):
    headers, rows = results.difference_table(made.modes)
    assert rows[0][:2] == ["single_pass - process", pytest.approx(-1 / 8)]
    other = evaluate(teacher(), make_benchmark(per_group=6, seed=5))
    assert results.difference_table({"a": made.modes["process"], "b": other}) is None
    assert results.difference_table({"a": other}) is None


def test_bars_hold_every_group_and_the_score(made):
    bars = results.bars(made.modes)
    assert list(bars["process"]) == [*GROUPS, "score"]
    mean, low, high = bars["single_pass"]["score"]
    assert low < mean < high


def test_unscored_groups_alone_have_no_score_anywhere(made, tmp_path):
    scores = evaluate(teacher(), make_benchmark(per_group=2, groups=["five_objects"]))
    assert scores.score is None
    assert [row[0] for row in results.group_table({"process": scores})[1]] == ["five_objects", *COSTS]
    assert list(results.bars({"process": scores})["process"]) == ["five_objects"]
    assert "process/score" not in dict(scores.scalars())
    path = dataclasses.replace(made, modes={"process": scores}).save(tmp_path / "results.json")
    assert json.loads(path.read_text())["modes"]["process"]["score"] is None
