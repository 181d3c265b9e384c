"""`python -m process_gen.data`."""

import datetime
import decimal
import json
import math
import os
import subprocess
import sys

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from process_gen.data import mix
from process_gen.data.__main__ import main
from process_gen.data.formats.jsonl import LISTING
from process_gen.data.formats.opening import detect, open_stored
from process_gen.data.sources import open_source
from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.experiment import builders, cli

SIZE = (8, 12)


@pytest.fixture
def mine(tmp_path):
    """Twelve trajectories, of which one lacks its image."""
    folder = tmp_path / "mine"
    folder.mkdir()
    PIL.Image.fromarray(np.full((8, 12, 3), 7, np.uint8)).save(folder / "a.png")
    lines = [{"uid": f"{n}", "prompt": f"p{n}", "turns": [{"image": "a.png"}]} for n in range(12)]
    lines[3]["turns"][0]["image"] = "b.png"
    (folder / LISTING).write_text("\n".join(json.dumps(line) for line in lines))
    return folder


def refused(capsys, *words):
    """What a command that ends with exit code 2 says."""
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


def test_a_set_is_converted_from_form_to_form(mine, tmp_path, capsys):
    source = mine
    for form in ("parquet", "webdataset", "folder", "records"):
        target = tmp_path / form
        size = ["--image_size=8,12"] if form == "records" else []
        assert main(["convert", str(source), str(target), f"--to={form}", "--on_error=skip", *size]) == 0
        assert detect(target) == form
        out = capsys.readouterr().out
        assert f"{target}: 11 trajectories, {int(source == mine)} left out" in out
        if source == mine:
            assert "1 times: turns[0].image does not exist: 'b.png'" in out
        source = target
    error = refused(capsys, "convert", source, tmp_path / "b", "--to=records", "--image_size=8,8")
    assert "holds pixels of (8, 12), not of (8, 8)" in error
    found = open_source({"source": "records", "path": str(source), "on_error": "fail"}, SIZE)
    assert [found[i].uid for i in range(11)] == [str(n) for n in range(12) if n != 3]
    assert (found[0].image == 7).all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to=parquet"], "line 4: turns[0].image does not exist: 'b.png'"),
        (
            ["--to=parquet", "--on_error=skip", "--budget=0.01"],
            "1 of 12 trajectories are bad, 1.00% may be (--budget)",
        ),
        (["--to=records"], "--to=records holds pixels: say of which --image_size=HEIGHT,WIDTH"),
        (["--to=folder", "--image_size=8,8"], "--image_size is for --to=records"),
        (["--to=folder", "--prompt_image"], "--prompt_image is for --to=records"),
        (["--to=parquet", "--from=webdataset"], "does not exist, or holds no *.tar"),
        (["--to=parquet", "--from=irg"], "does not exist, or holds no *.parquet"),
    ],
)
def test_what_cannot_be_done_is_one_line(mine, tmp_path, capsys, flags, message):
    error = refused(capsys, "convert", mine, tmp_path / "out", *flags).splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "out").exists()


def test_records_have_a_place_for_input_images_where_it_is_asked_for(mine, tmp_path, capsys):
    turns = [{"image": "a.png", "inspect": "no"}, {"refine": "x"}]
    (mine / LISTING).write_text(json.dumps({"image": "a.png", "instruction": "red", "turns": turns}))
    flags = ["convert", str(mine), str(tmp_path / "out"), "--to=records", "--image_size=8,12"]
    assert "has no place for one: make it with prompt_image=True" in refused(capsys, *flags)
    assert not (tmp_path / "out").exists()
    assert main([*flags, "--prompt_image"]) == 0
    found = open_source({"source": "records", "path": str(tmp_path / "out"), "on_error": "fail"}, SIZE)[0]
    assert (found.prompt_image == 7).all() and found.instruction == "red" and found.turns[1].image is None


def test_a_target_that_is_there_stays(mine, tmp_path, capsys):
    error = refused(capsys, "convert", mine, mine, "--to=folder", "--on_error=skip")
    assert "is not empty: choose another folder" in error
    assert len(open_stored(mine, SIZE)) == 12


def test_help_names_the_commands():
    found = subprocess.run(
        [sys.executable, "-m", "process_gen.data", "--help"], capture_output=True, text=True
    )
    assert found.returncode == 0 and "convert" in found.stdout


def odd_set(folder):
    """Nine good trajectories of several kinds, one whose image is cut off."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (8, 12, 3)), ("b.jpg", (20, 12)), ("c.png", (8, 12, 4))):
        PIL.Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / name)
    (folder / "d.png").write_bytes((folder / "a.png").read_bytes()[:90])
    corrected = [{"image": "a.png", "inspect": "it is red"}, {"refine": "make it blue"}]
    lines = [
        {"prompt": f"a circle and {'a star and ' * n} a circle", "turns": [{"image": "b.jpg"}]}
        for n in range(4)
    ]
    lines += [{"prompt": "a photo of a dog", "turns": corrected, "licence": "CC0", "mask": 1}] * 3
    lines += [{"prompt": "a circle", "turns": [{"image": name}] * 9} for name in ("a.png", "c.png", "d.png")]
    (folder / LISTING).write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_what_training_would_refuse_ends_with_2(tmp_path, capsys, own_config):
    folder, config = tmp_path / "mine", own_config('config.data.fields = dict(quality="number")')
    folder.mkdir()
    PIL.Image.new("RGB", (32, 32)).save(folder / "a.png")
    turn = {"image": "a.png", "quality": 0.5}
    lines = [{"prompt": "a circle", "turns": [turn]} for _ in range(11)]
    lines[0] |= {"uid": "x", "prompt": "пейзаж"}
    lines[1] |= {"uid": "x", "turns": [turn | {"inspect": "circle " * 40}]}
    lines[2]["turns"] = [turn | {"quality": "high"}]
    (folder / LISTING).write_text("\n".join(map(json.dumps, lines)))
    flags = ["check", str(folder), f"--config={config}", "--show=-1", "--processes=1"]
    assert main([*flags, "--config.data.on_error=skip"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for told in ("bad trajectories 1 ", "do not fit this layout 1 ", "the tokenizer does not know 1 "):
        assert told in out
    assert "names (uid) that come more than once 2 " in out and "unknown fields" not in out
    assert f"{LISTING}, line 2: the inspection has 40 tokens, 16 fit" in out
    assert f"{LISTING}, line 3: turns[0].quality is no number: 'high'" in out
    assert "2 of 11 trajectories are bad, 0.00% may be (--budget)" in refused(capsys, *flags)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_set_is_looked_at_before_a_run(tmp_path, capsys, monkeypatch, processes):
    monkeypatch.setattr("process_gen.data.checking.BLOCK", 4)
    flags = [f"--processes={processes}", "--budget=0.2", "--show=4", "--config=configs/scenes.py:quick"]
    assert main(["check", str(odd_set(tmp_path / "odd")), *flags]) == 0
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for line in (
        "trajectories 9",
        "bad trajectories 1",
        "prompts that come more than once 5",
        "the same prompt and last image again 2",
        "prompts of GenEval 3",
        "refine, words alone 3",
        "turns of a trajectory: 1: 4, 2: 3, 9: 2",
        "licence: - 6, CC0 3",
        "3 x mask",
        "3 x single_object: a photo of a dog",
        "prompt 9 9.333 10 16 16 16 36 0",
        "before 3 7.000 7 7 7 7 40 0",
        "sizes of images: 8 x 12 21, 20 x 12 4",
        "modes of images: RGB 12, RGBA 9, L 4",
        "formats of images: PNG 21, JPEG 4",
    ):
        assert line in lines, line
    assert "line 10: turns[0].image is no readable PNG" in out
    (suggested,) = [line for line in lines if line.startswith("suggested: ")]
    assert "--config.layout.turns=9" in suggested and "--config.layout.after=8" in suggested
    layout = builders.build_layout(cli.load_config("configs/scenes.py:quick"))
    source = open_stored(tmp_path / "odd", layout.image_size)
    good = [mix.without_pixels(source[index]) for index in range(9)]
    share, dropped = (
        mix.loader_of(layout, good, scenes_tokenizer(), split).report(None).useful for split in (True, False)
    )
    assert share != dropped  # two are longer than a row
    assert any(line.startswith(f"this layout: {share:.1%} of") for line in lines)
    assert any(line.endswith("<refine> inspect_decision") for line in lines)
    assert any("refine_text" in line for line in lines) and "refine_flow" not in out
    assert main(["check", str(tmp_path / "odd"), *flags, *suggested.split()[1:]]) == 0
    assert "suggested: the layout as it is" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "odd"), *flags, "--config.layout.after=0"]) == 0
    assert "layout.after" not in capsys.readouterr().out  # no inspections are wanted


def test_a_set_that_training_would_refuse_is_refused(tmp_path, capsys):
    said = refused(capsys, "check", odd_set(tmp_path / "odd"), "--processes=1", "--budget=0.05")
    error = said.splitlines()[-1]
    assert error.startswith("error: 1 of 10 trajectories are bad, 5.00% may be (--budget)")
    assert "line 10" in error
    for flags, message in (
        (["--config=configs/none.py"], "configs/none.py"),
        (["--config.data.tokenizer=nowhere"], "nowhere"),
        (["--config.layout.turn=9"], "did you mean config.layout.turns?"),
        (["--config.layout.turns=many"], "config.layout.turns"),
        (["--from=parquet"], "holds no *.parquet"),
    ):
        said = refused(capsys, "check", tmp_path / "odd", "--processes=1", *flags)
        assert message in said.splitlines()[-1]


def test_a_trajectory_that_cannot_be_shown_says_why(tmp_path, capsys):
    flags = ["check", str(odd_set(tmp_path / "odd")), "--processes=1", "--budget=0.2"]
    assert main([*flags, "--show=9"]) == 0
    assert "trajectory 9 cannot be trained" in capsys.readouterr().out
    assert "--show=10: the last one of 10 trajectories is 9" in refused(capsys, *flags, "--show=10")


def end_at_once(indices):
    """As a process that the system ends for want of memory."""
    os._exit(1)


def test_a_process_that_is_ended_from_outside_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("process_gen.data.checking.BLOCK", 4)
    monkeypatch.setattr("process_gen.data.checking._examine_here", end_at_once)
    error = refused(capsys, "check", odd_set(tmp_path / "odd"), "--processes=2")
    assert "error: one of 2 processes came to an end" in error


def test_a_target_that_is_a_link_is_filled_and_a_file_is_refused(mine, tmp_path, capsys):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    flags = ["--to=folder", "--on_error=skip"]
    assert main(["convert", str(mine), str(tmp_path / "link"), *flags]) == 0
    assert (tmp_path / "link").is_symlink() and len(open_stored(tmp_path / "disk", SIZE)) == 11
    error = refused(capsys, "convert", mine, mine / "a.png", *flags)
    assert "a.png is a file: choose another folder" in error


def test_fields_that_json_has_no_place_for_are_kept_as_text_or_named(mine, tmp_path, capsys):
    """Unknown columns of somebody's table: dates and decimals, raw bytes, numbers that are none."""
    png = {"bytes": (mine / "a.png").read_bytes(), "path": None}
    odd = {"day": datetime.date(2020, 1, 2), "price": decimal.Decimal("1.5"), "raw": b"\xff\x00"}
    rows = [{"uid": f"{n}", "prompt": "p", "turns": [{"image": png}], **odd, "score": 0.5} for n in range(4)]
    rows[2]["score"] = math.nan
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / "a.parquet")
    for form in ("folder", "parquet"):
        target = tmp_path / form
        flags = [f"--to={form}", "--on_error=skip", "--budget=0.5"]
        assert main(["convert", str(tmp_path / "in"), str(target), *flags]) == 0
        out = capsys.readouterr().out
        assert "3 trajectories, 1 left out" in out and "1 times: score is not JSON" in out
        found = open_stored(target, SIZE)[0].metadata
        assert (found["day"], found["price"], found["score"]) == ("2020-01-02", "1.5", 0.5)
        assert open_stored(target, SIZE).object(0)["raw"]["bytes"] == b"\xff\x00"


def test_a_tilde_is_the_home_folder(mine, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    for flag in ("--config=~/none.py", "--config.data.tokenizer=~/none"):
        assert f"{tmp_path}/none" in refused(capsys, "check", mine, flag)


def test_a_command_whose_reader_has_gone_ends_without_a_word(mine):
    command = [sys.executable, "-m", "process_gen.data", "check", str(mine), "--processes=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        error = process.stderr.read()
        assert process.wait(timeout=120) == 141 and "error" not in error
