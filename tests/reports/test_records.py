from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from process_gen.data.encode import BadTrajectory
from process_gen.data.folder import FolderSource
from process_gen.reports import files, records
from process_gen.reports.report import write_report
from process_gen.trajectory.record import SAMPLED_KEYS
from process_gen.trajectory.sampled import SampledTrajectory
from process_gen.trajectory.stages import TURN_FIELDS
from tests.reports import samples

BAD_NAMES = [
    "", ".", "..", "../x", "a/b", "a\\b", "/x", "C:x", "a\0", "a\n", ".hidden", "a..b", "x.", "con",
    "NUL.png", "a" * 101, "é",
]  # fmt: skip


def make(folder, trajectory: SampledTrajectory | None = None) -> dict:
    trajectory = dataclasses.replace(trajectory or samples.process(), uid="x")
    return records.record_of(trajectory, records.save_images(folder, trajectory))


def check_same(read, written: SampledTrajectory) -> None:
    """The trainer's trajectory is the sampler's."""
    assert (read.prompt, read.uid) == (written.prompt, written.uid)
    assert len(read.turns) == len(written.turns)
    for one, other in zip(read.turns, written.turns, strict=True):
        for field in TURN_FIELDS:
            values = getattr(one, field.name), getattr(other, field.name)
            assert np.array_equal(*values) if field.type == "image" else values[0] == values[1], field.name


def test_records_say_what_happened(tmp_path):
    record = make(tmp_path)
    assert (record["mode"], record["seed"], record["stopped"]) == ("process", 7, "model")
    assert set(record) == {"uid", "prompt", "turns", *SAMPLED_KEYS}
    first, draft, refined, malformed, last = record["turns"]
    assert first["instruction"] == "draw a red circle" and first["description"] == "the scene"
    assert first["inspect"] == "the circle is right" and "refines" not in first
    assert draft["image"] == "images/x_2_sketch.png"
    assert (refined["refine"], refined["image"]) == ("make it blue", "images/x_2_refined.png")
    assert malformed["before"] == "<ins>add a" and "instruction" not in malformed
    assert (last["before"], last["refines"]) == ("<refine>move", True)
    assert make(tmp_path, samples.single_pass())["stopped"] == "cap"


def test_saved_images_are_the_sampled_ones(tmp_path):
    record = make(tmp_path)
    for turn, seed in zip(record["turns"], (1, 2, 3, 4, 5), strict=True):
        assert np.array_equal(samples.read_png(tmp_path / turn["image"]), samples.image(seed))
    assert len(list((tmp_path / "images").iterdir())) == 5


def test_every_correction_has_an_image_of_its_own(tmp_path):
    record = make(tmp_path, samples.corrected_twice())
    names = ["1_sketch", "2_sketch", "2_refined", "2_refined2"]
    assert [turn["image"] for turn in record["turns"]] == [f"images/x_{name}.png" for name in names]
    for turn, seed in zip(record["turns"], (1, 2, 3, 4), strict=True):
        assert np.array_equal(samples.read_png(tmp_path / turn["image"]), samples.image(seed))


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("made", [samples.process, samples.corrected_twice, samples.single_pass])
def test_what_a_report_holds_the_trainer_reads(tmp_path, made, given):
    one = made()
    if given:
        one = dataclasses.replace(one, prompt_image=samples.image(8), instruction="in red", given=1)
    write_report(tmp_path, [one, made()], "t")
    source = FolderSource(tmp_path, (32, 32))
    assert len(source) == 2
    for index, written in enumerate((one, made())):
        read = source[index]
        check_same(read, dataclasses.replace(written, uid=f"{index:04d}"))
        assert (read.prompt_image is not None) == (given and index == 0)
        assert read.instruction == ("in red" if given and index == 0 else "")
        for key in SAMPLED_KEYS:
            assert read.metadata.get(key) == getattr(written, key), key
    if given:
        assert np.array_equal(source[0].prompt_image, samples.image(8))


@pytest.mark.parametrize("text", samples.HOSTILE)
def test_round_trip_is_exact_whatever_the_text(tmp_path, text):
    written = [samples.hostile(text), samples.process()]
    path = write_report(tmp_path, written, "t").jsonl
    assert path.read_bytes().count(b"\n") == 2
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert lines[0]["prompt"] == text and lines[0]["turns"][2]["before"] == text
    assert lines[0]["verdict"] == samples.hostile(text).verdict
    if "\ud800" in text:  # no tokenizer can make anything of half a character
        with pytest.raises(BadTrajectory, match="line 1: .* holds half of a character"):
            FolderSource(tmp_path, (32, 32))
        return
    source = FolderSource(tmp_path, (32, 32))
    for index, one in enumerate(written):
        check_same(source[index], dataclasses.replace(one, uid=f"{index:04d}"))


def test_numpy_values_in_a_verdict_become_json(tmp_path):
    verdict = {"ok": np.bool_(True), "n": np.int64(3), "x": np.arange(2), "s": {"b", "a"}}
    path = write_report(tmp_path, [samples.process(verdict=verdict)], "t").jsonl
    line = json.loads(path.read_text())
    assert line["verdict"] == {"ok": True, "n": 3, "x": [0, 1], "s": ["a", "b"]}


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = records.write_jsonl(tmp_path / "t.jsonl", [make(tmp_path)])
    before = path.read_bytes()
    lines = (make(tmp_path, samples.process(verdict=verdict)) for verdict in (None, {"x": object()}))
    with pytest.raises(ValueError, match="has no place in a record"):
        records.write_jsonl(path, lines)
    with pytest.raises(TypeError, match="not JSON serializable"):
        records.write_jsonl(path, [make(tmp_path), {"x": object()}])
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "t.jsonl"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_unsafe_names_are_refused_before_anything_is_written(tmp_path, name):
    out = tmp_path / "out"
    with pytest.raises(files.ReportError, match="cannot be part of a file name"):
        records.save_images(out, samples.process(uid=name))
    assert not out.exists()


@pytest.mark.parametrize(
    "path", ["../secret.png", "/etc/passwd", "images/../../secret.png", "images\\..\\..\\x", "a\0b", "."]
)
def test_no_path_reaches_out_of_its_folder(tmp_path, path):
    with pytest.raises(files.ReportError, match="leads out of|is not a path"):
        files.inside(tmp_path / "out", path)
    assert files.inside(tmp_path / "out", "images/x.png") == tmp_path / "out" / "images" / "x.png"


def test_a_link_cannot_lead_out_of_the_folder_either(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "away").mkdir()
    (tmp_path / "out" / "images").symlink_to(tmp_path / "away")
    with pytest.raises(files.ReportError, match="leads out of"):
        records.save_images(tmp_path / "out", samples.process(uid="x"))
    assert not list((tmp_path / "away").iterdir())


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
