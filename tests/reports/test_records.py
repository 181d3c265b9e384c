from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from process_gen.reports import files, records
from process_gen.reports.images import read_png
from process_gen.reports.report import write_report
from tests.reports import samples

BAD_NAMES = [
    "", ".", "..", "../x", "a/b", "a\\b", "/x", "C:x", "a\0", "a\n", ".hidden", "a..b", "x.", "con",
    "NUL.png", "a" * 101, "é",
]  # fmt: skip


def make(folder, trajectory=None) -> records.Record:
    trajectory = trajectory or samples.process()
    return records.record_of(trajectory, "x", records.save_images(folder, "x", trajectory.steps))


def test_records_say_what_happened(tmp_path):
    record = make(tmp_path)
    first, second, third = record.steps
    assert (record.mode, record.seed, record.stopped) == ("process", 7, "model")
    assert first.plan == {"instruction": "draw a red circle", "description": "the scene"}
    assert first.refine_text is None and first.refined is None and first.decision == "continue"
    assert second.refine == "make it blue" and second.refined == "images/x_2_refined.png"
    assert third.plan is None and "never closed" in third.plan_malformed
    assert third.plan_text == "<ins>add a" and third.refine is None
    assert "never closed" in third.refine_malformed
    assert third.decision == "stop"
    assert make(tmp_path, samples.single_pass()).steps[0].decision == "cap"
    assert record.image == "images/x_3_refined.png"


def test_saved_images_are_the_sampled_ones(tmp_path):
    record = make(tmp_path)
    assert np.array_equal(read_png(tmp_path / record.steps[1].sketch), samples.image(2))
    assert np.array_equal(read_png(tmp_path / record.steps[1].refined), samples.image(3))
    assert len(list((tmp_path / "images").iterdir())) == 5


@pytest.mark.parametrize("text", samples.HOSTILE)
def test_round_trip_is_exact_whatever_the_text(tmp_path, text):
    written = [make(tmp_path, samples.hostile(text)), make(tmp_path)]
    path = records.write_jsonl(tmp_path / "t.jsonl", written)
    assert path.read_bytes().count(b"\n") == 2
    loaded = records.read_jsonl(path)
    assert loaded == written
    assert loaded[0].prompt == text and loaded[0].steps[1].plan_text == text


def test_numpy_values_in_a_verdict_become_json(tmp_path):
    verdict = {"ok": np.bool_(True), "n": np.int64(3), "x": np.arange(2), "s": {"b", "a"}}
    path = write_report(tmp_path, [samples.process(verdict=verdict)], "t").jsonl
    assert records.read_jsonl(path)[0].verdict == {"ok": True, "n": 3, "x": [0, 1], "s": ["a", "b"]}


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = records.write_jsonl(tmp_path / "t.jsonl", [make(tmp_path)])
    before = path.read_bytes()
    with pytest.raises(TypeError, match="has no place in a record"):
        records.write_jsonl(
            path, [make(tmp_path), dataclasses.replace(make(tmp_path), verdict={"x": object()})]
        )
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "t.jsonl"]


def break_line(**changes) -> str:
    step = {"sketch": "images/x.png"}
    line = {"uid": "x", "prompt": "p", "mode": "process", "seed": 0, "steps": [step], "stopped": "cap"}
    return json.dumps({**line, **changes})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Expecting"),
        ("[]", "must be a JSON object, got list"),
        ("{}", "has no field 'uid'"),
        (break_line(prompt=3), "'prompt' must be str, got int"),
        (break_line(seed=True), "'seed' must be int, got bool"),
        (break_line(mode="dream"), "'mode' must be one of process, plan_only, single_pass"),
        (break_line(stopped=""), "'stopped' must be one of model, cap"),
        (break_line(steps=[3]), "step 1 must be a JSON object"),
        (break_line(steps=[{"sketsh": "x"}]), "unknown field 'sketsh'"),
        (break_line(steps=[{"decision": "go"}]), "step 1: 'decision' must be one of"),
        (break_line(colour=1), "unknown field 'colour'"),
        ("[" * 100_000, ""),
    ],
)
def test_broken_lines_are_named(tmp_path, line, message):
    path = tmp_path / "t.jsonl"
    path.write_text(break_line() + "\n\n" + line + "\n")
    with pytest.raises(records.RecordError) as error:
        records.read_jsonl(path)
    assert str(error.value).startswith(f"{path}:3: ") and message in str(error.value)


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(b'"\xff"\n')
    with pytest.raises(records.RecordError, match=r"t\.jsonl:1: .*utf-8"):
        records.read_jsonl(tmp_path / "t.jsonl")


def test_a_missing_file_is_a_report_error(tmp_path):
    with pytest.raises(files.ReportError, match="No such file"):
        records.read_jsonl(tmp_path / "none.jsonl")


@pytest.mark.parametrize("name", BAD_NAMES)
def test_unsafe_names_are_refused_before_anything_is_written(tmp_path, name):
    out = tmp_path / "out"
    with pytest.raises(files.ReportError, match="cannot be part of a file name"):
        records.save_images(out, name, samples.process().steps)
    assert not out.exists()


def test_safe_names_pass():
    for name in ("0000", "a_b-c.d", "Console", "x1"):
        assert files.safe_name(name) == name


def test_writable_folders_are_made(tmp_path):
    assert files.check_writable(tmp_path / "a" / "b").is_dir()
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_unwritable_folders_are_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below", str(tmp_path) + "/a\0b"):
        with pytest.raises(files.ReportError, match="cannot write to the output folder"):
            files.check_writable(path)
        with pytest.raises(OSError):
            write_report(path, [samples.process()], "t")
    assert (tmp_path / "file").read_text() == "mine"

    def full(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.tempfile, "NamedTemporaryFile", full)
    with pytest.raises(files.ReportError, match=r"locked'?: Permission denied"):
        files.check_writable(tmp_path / "locked")


def test_writing_replaces_a_link_and_not_what_it_points_to(tmp_path):
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "out.png").symlink_to(tmp_path / "secret")
    files.write_bytes(tmp_path / "out.png", b"new")
    assert (tmp_path / "secret").read_text() == "mine"
    assert (tmp_path / "out.png").read_bytes() == b"new" and not (tmp_path / "out.png").is_symlink()
