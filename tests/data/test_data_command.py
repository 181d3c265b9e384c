"""`python -m process_gen.data`."""

import json
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from process_gen.data.__main__ import main
from process_gen.data.formats.jsonl import LISTING
from process_gen.data.formats.opening import detect, open_stored
from process_gen.data.sources import open_source

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
    assert main(["convert", str(source), str(tmp_path / "b"), "--to=records", "--image_size=8,8"]) == 2
    assert "holds pixels of (8, 12), not of (8, 8)" in capsys.readouterr().err
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
    assert main(["convert", str(mine), str(tmp_path / "out"), *flags]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "out").exists()


def test_records_have_a_place_for_input_images_where_it_is_asked_for(mine, tmp_path, capsys):
    edit = {
        "image": "a.png",
        "instruction": "red",
        "turns": [{"image": "a.png", "inspect": "no"}, {"refine": "x"}],
    }
    (mine / LISTING).write_text(json.dumps(edit))
    flags = ["convert", str(mine), str(tmp_path / "out"), "--to=records", "--image_size=8,12"]
    assert main(flags) == 2
    assert "has no place for one: make it with prompt_image=True" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*flags, "--prompt_image"]) == 0
    found = open_source({"source": "records", "path": str(tmp_path / "out"), "on_error": "fail"}, SIZE)[0]
    assert (found.prompt_image == 7).all() and found.instruction == "red" and found.turns[1].image is None


def test_a_target_that_is_there_stays(mine, tmp_path, capsys):
    assert main(["convert", str(mine), str(mine), "--to=folder", "--on_error=skip"]) == 2
    assert "is not empty: choose another folder" in capsys.readouterr().err
    assert len(open_stored(mine, SIZE)) == 12


def test_help_names_the_commands():
    found = subprocess.run(
        [sys.executable, "-m", "process_gen.data", "--help"], capture_output=True, text=True
    )
    assert found.returncode == 0 and "convert" in found.stdout
