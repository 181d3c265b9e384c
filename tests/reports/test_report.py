from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from process_gen.reports.files import ReportError
from process_gen.reports.report import write_report
from tests.reports import samples


def lines_of(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_report_has_all_its_files(tmp_path):
    out = tmp_path / "new" / "out"
    paths = write_report(out, [samples.process(), samples.single_pass()], "Samples", {"mode": "process"})
    assert paths.jsonl == out / "trajectories.jsonl" and paths.page == out / "index.html"
    assert [p.name for p in paths.strips] == ["0000.png", "0001.png"]
    assert [p.name for p in paths.images] == [
        "0000_1_sketch.png", "0000_2_sketch.png", "0000_2_refined.png", "0000_3_sketch.png",
        "0000_3_refined.png", "0001_1_sketch.png",
    ]  # fmt: skip
    for path in (*paths.images, *paths.strips):
        with Image.open(path) as picture:
            picture.verify()
    loaded = lines_of(paths.jsonl)
    assert [record["uid"] for record in loaded] == ["0000", "0001"]
    named = [out / turn["image"] for record in loaded for turn in record["turns"]]
    assert named == list(paths.images)
    everything = {p for p in out.rglob("*") if p.is_file()}
    assert everything == {paths.jsonl, paths.page, *paths.images, *paths.strips}


def test_uids_name_the_files_and_must_be_safe_and_distinct(tmp_path):
    paths = write_report(tmp_path, [samples.process(uid="count-3")], "t")
    assert paths.strips[0].name == "count-3.png"
    for uids in (("../x", "a"), ("a", "A")):
        with pytest.raises(ReportError):
            write_report(tmp_path / "bad", [samples.process(uid=uid) for uid in uids], "t")
    assert not list((tmp_path / "bad").iterdir())


@pytest.mark.parametrize("text", samples.HOSTILE)
def test_hostile_text_goes_through(tmp_path, text):
    paths = write_report(tmp_path, [samples.hostile(text)], text, {text: text})
    assert lines_of(paths.jsonl)[0]["prompt"] == text


def test_an_empty_run_is_an_empty_report(tmp_path):
    paths = write_report(tmp_path, [], "nothing")
    assert paths.jsonl.read_bytes() == b"" and paths.page.is_file() and not paths.strips


def test_the_input_image_of_a_prompt_is_shown(tmp_path):
    image = np.full((24, 40, 3), (200, 30, 30), np.uint8)
    one = dataclasses.replace(samples.process(), prompt_image=image)
    plain = write_report(tmp_path / "plain", [samples.process()], "Plain")
    paths = write_report(tmp_path / "given", [one], "Given")
    assert paths.images[0].name == "0000_input.png"
    np.testing.assert_array_equal(np.asarray(Image.open(paths.images[0])), image)
    assert len(paths.images) == len(plain.images) + 1
    assert "input image" in paths.page.read_text() and "input image" not in plain.page.read_text()
    assert lines_of(paths.jsonl)[0]["image"] == "images/0000_input.png"
    shown, other = (np.asarray(Image.open(p.strips[0]).convert("RGB")) for p in (paths, plain))
    red = [(picture == (200, 30, 30)).all(-1).sum() for picture in (shown, other)]
    assert red[0] >= red[1] + 24 * 40
