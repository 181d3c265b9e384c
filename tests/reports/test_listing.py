from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from process_gen.data.errors import BadTrajectory
from process_gen.data.formats.opening import open_stored
from process_gen.reports import files
from process_gen.reports.listing import NAME, Listing, key_of, save_trajectory
from process_gen.trajectory.record import SAMPLED_KEYS
from process_gen.trajectory.sampled import SampledTrajectory
from process_gen.trajectory.stages import TURN_FIELDS
from tests.reports import samples


def make(folder, trajectory: SampledTrajectory | None = None) -> dict:
    trajectory = dataclasses.replace(trajectory or samples.process(), uid="x")
    return json.loads(save_trajectory(folder, trajectory))


def written_to(folder, *trajectories: SampledTrajectory) -> pathlib.Path:
    """The listing of a folder to which the trajectories were added."""
    listing = Listing(folder, {})
    for number, one in enumerate(trajectories):
        listing.add(one, number)
    return listing.path


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


@pytest.mark.parametrize(
    "made, names",
    [
        (samples.process, ["1_sketch", "2_sketch", "2_refined", "3_sketch", "3_refined"]),
        (samples.corrected_twice, ["1_sketch", "2_sketch", "2_refined", "2_refined2"]),
    ],
)
def test_every_turn_has_an_image_of_its_own(tmp_path, made, names):
    paths = [turn["image"] for turn in make(tmp_path, made())["turns"]]
    assert paths == [f"images/x_{name}.png" for name in names]
    for seed, path in enumerate(paths, 1):
        assert np.array_equal(samples.read_png(tmp_path / path), samples.image(seed))
    assert len(list((tmp_path / "images").iterdir())) == len(names)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("made", [samples.process, samples.corrected_twice, samples.single_pass])
def test_what_a_listing_holds_the_trainer_reads(tmp_path, made, given):
    one = made()
    if given:
        one = dataclasses.replace(one, prompt_image=samples.image(8), instruction="in red", given=1)
    written_to(tmp_path, one, made())
    source = open_stored(tmp_path, (32, 32))
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
    path = written_to(tmp_path, *written)
    assert path.read_bytes().count(b"\n") == 2
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert lines[0]["prompt"] == text and lines[0]["turns"][2]["before"] == text
    assert lines[0]["verdict"] == samples.hostile(text).verdict
    if "\ud800" in text:  # no tokenizer can make anything of half a character
        with pytest.raises(BadTrajectory, match="line 1: .* holds an unpaired surrogate"):
            open_stored(tmp_path, (32, 32))
        return
    source = open_stored(tmp_path, (32, 32))
    for index, one in enumerate(written):
        check_same(source[index], dataclasses.replace(one, uid=f"{index:04d}"))


def test_numpy_values_in_a_verdict_become_json(tmp_path):
    verdict = {"ok": np.bool_(True), "n": np.int64(3), "x": np.arange(2), "s": {"b", "a"}}
    found = make(tmp_path, samples.process(verdict=verdict))["verdict"]
    assert found == {"ok": True, "n": 3, "x": [0, 1], "s": ["a", "b"]}


def test_what_json_cannot_hold_is_no_line(tmp_path):
    listing = Listing(tmp_path, {})
    listing.add(samples.process(), 0)
    before = listing.path.read_bytes()
    with pytest.raises(ValueError, match="has no place in a record"):
        listing.add(samples.process(verdict={"ok": True, "x": object()}), 1)
    assert listing.path.read_bytes() == before and len(listing) == 1


def test_a_listing_has_all_its_files(tmp_path):
    out = tmp_path / "new" / "out"
    path = written_to(out, samples.process(), samples.single_pass())
    assert path == out / NAME
    strips = [out / "strips" / name for name in ("0000.png", "0001.png")]
    named = [
        out / turn["image"] for line in path.read_bytes().splitlines() for turn in json.loads(line)["turns"]
    ]
    assert [one.name for one in named] == [
        "0000_1_sketch.png", "0000_2_sketch.png", "0000_2_refined.png", "0000_3_sketch.png",
        "0000_3_refined.png", "0001_1_sketch.png",
    ]  # fmt: skip
    for one in (*named, *strips):
        with Image.open(one) as picture:
            picture.verify()
    everything = {one for one in out.rglob("*") if one.is_file()}
    assert everything == {path, out / "settings.json", *named, *strips}


def test_a_listing_gives_back_what_was_added(tmp_path):
    written = [samples.process(), samples.single_pass(), samples.corrected_twice()]
    written_to(tmp_path, *written)
    again = Listing(tmp_path, {})
    assert (len(again), again.judged, again.right) == (3, 1, 0)
    assert again.done == {key_of(one.prompt, one.instruction, one.seed, one.prompt_image) for one in written}
    first = again.first(2)
    assert [one.uid for one in first] == ["0000", "0001"]
    for one, other in zip(first, written, strict=False):
        check_same(one, dataclasses.replace(other, uid=one.uid))
        assert [getattr(one, key) for key in SAMPLED_KEYS] == [getattr(other, key) for key in SAMPLED_KEYS]


def test_the_first_by_name_are_not_those_that_came_first(tmp_path):
    listing = Listing(tmp_path, {})
    for number in (2, 0, 1):
        listing.add(samples.single_pass(), number)
    assert [one.uid for one in listing.first(2)] == ["0000", "0001"]


def test_the_input_image_of_a_prompt_is_shown(tmp_path):
    image = np.full((24, 40, 3), (200, 30, 30), np.uint8)
    line = make(tmp_path / "given", samples.process(prompt_image=image))
    make(tmp_path / "plain")
    assert line["image"] == "images/x_input.png"
    np.testing.assert_array_equal(samples.read_png(tmp_path / "given" / line["image"]), image)
    shown, other = (samples.read_png(tmp_path / name / "strips" / "x.png") for name in ("given", "plain"))
    red = [(picture == (200, 30, 30)).all(-1).sum() for picture in (shown, other)]
    assert red[0] >= red[1] + 24 * 40


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
        save_trajectory(tmp_path / "out", samples.process(uid="x"))
    assert not list((tmp_path / "away").iterdir())


def test_writable_folders_are_made(tmp_path):
    assert files.check_writable(tmp_path / "a" / "b").is_dir()
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_unwritable_folders_are_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below", str(tmp_path) + "/a\0b"):
        with pytest.raises(files.ReportError, match="cannot write to the output folder"):
            files.check_writable(path)
        with pytest.raises(OSError):
            Listing(path, {})
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
