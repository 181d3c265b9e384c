from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from process_gen.scenes.__main__ import main
from process_gen.scenes.levels import LEVELS

PROMPT = "a red circle left of a blue square"


def test_prompts(capsys):
    assert main(["prompts", "--count=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9 * 2 * 2 and lines[0].startswith("single_object  train")
    assert main(["prompts", "--jsonl", "--category=position", "--split=heldout"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 3 and {row["tag"] for row in rows} == {"position"}
    assert rows[0].keys() == {"tag", "include", "exclude", "prompt", "split"}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("scale", [1, 5])
def test_render_then_judge(tmp_path, capsys, level: str, scale: int):
    path = str(tmp_path / "scene.png")
    assert (
        main(["render", f"--prompt={PROMPT}", f"--level={level}", f"--scale={scale}", f"--out={path}"]) == 0
    )
    scene = json.loads(capsys.readouterr().out)
    assert main(["judge", f"--prompt={PROMPT}", f"--level={level}", f"--image={path}"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["correct"] and len(verdict["scene"]["objects"]) == len(scene["objects"]) == 2
    assert main(["judge", "--prompt=a red circle", f"--level={level}", f"--image={path}"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert not verdict["correct"] and {c["kind"] for c in verdict["checks"] if not c["ok"]} == {"extra"}


def test_render_a_scene(tmp_path, capsys):
    scene = {"objects": [{"shape": "star", "colour": "red", "cell": "b2"}]}
    path = tmp_path / "scene.json"
    path.write_text(json.dumps(scene))
    for source in (json.dumps(scene), str(path)):
        assert main(["render", f"--scene={source}", f"--out={tmp_path / 'a.png'}"]) == 0
        assert json.loads(capsys.readouterr().out)["objects"][0]["x"] == 12


@pytest.mark.parametrize("mode", ["RGBA", "P", "RGB"])
def test_judge_reads_any_mode(tmp_path, capsys, mode: str):
    path = str(tmp_path / "scene.png")
    main(["render", "--prompt=a red circle", f"--out={path}"])
    Image.open(path).convert(mode).resize((96, 96), Image.Resampling.NEAREST).save(path)
    capsys.readouterr()
    assert main(["judge", "--prompt=a red circle", f"--image={path}"]) == 0
    assert json.loads(capsys.readouterr().out)["correct"]


def test_transparency_shows_the_background(tmp_path, capsys):
    path = str(tmp_path / "clear.png")
    Image.fromarray(np.zeros((32, 32, 4), np.uint8)).save(path)
    assert main(["judge", "--prompt=a circle", f"--image={path}"]) == 0
    assert json.loads(capsys.readouterr().out)["scene"]["objects"] == []


def test_show(tmp_path, capsys):
    path = str(tmp_path / "trajectory.png")
    assert main(["show", "--seed=3", "--category=five_objects", "--wrong=1", f"--out={path}"]) == 0
    *said, last = capsys.readouterr().out.splitlines()
    assert "steps, written to" in last and said[1].startswith("<ins>") and "<refine>" in "".join(said)
    with Image.open(path) as image:
        assert image.width > 900 and image.height > 300
    assert main(["show", f"--prompt={PROMPT}", f"--out={path}"]) == 0


@pytest.fixture
def files(tmp_path):
    Image.new("RGB", (32, 32), (128, 128, 128)).save(tmp_path / "grey.png")
    whole = (tmp_path / "grey.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "latin.json").write_bytes(b'{"\xff"')
    return tmp_path


@pytest.mark.parametrize(
    "command, reason",
    [
        ("judge --prompt= --image={}/grey.png", "the prompt is empty"),
        ("judge --prompt=dog --image={}/grey.png", "unknown words: 'dog'"),
        ("judge --prompt=circle --image={}/none.png", "no image at"),
        ("judge --prompt=circle --image={}", "cannot read"),
        ("judge --prompt=circle --image={}/cut.png", "cannot read"),
        ("judge --prompt=circle --image={}/text.png", "cannot read"),
        ("judge --prompt=circle --image={}/empty.png", "cannot read"),
        ("render --prompt=circles --out={}/a.png", "say how many"),
        ("render --prompt=circle --out={}/none/a.png", "cannot write"),
        ("render --prompt=circle --out={}/a.xyz", "cannot write"),
        ("render --scene={}/bad.json --out={}/a.png", "scene"),
        ("render --scene={}/latin.json --out={}/a.png", "scene"),
        ("render --scene={}/none.json --out={}/a.png", "No such file"),
        ('render --scene={{"objects":[{{"shape":"dog"}}]}} --out={}/a.png', "shape 'dog'"),
        (
            'render --scene={{"objects":[{{"shape":"unclear","colour":"red","cell":"a1"}}]}} --out={}/a.png',
            "cannot draw the unclear thing",
        ),
        ("show --category=nope --out={}/a.png", "no category 'nope'"),
        ("prompts --category=six_objects", "no category 'six_objects'"),
    ],
)
def test_bad_input_is_a_clear_message(files, capsys, command: str, reason: str):
    parts = command.split(" ")
    assert main([part.format(files, files) for part in parts]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and reason in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "argument", ["--level=huge", "--seed=-1", "--wrong=1.5", "--wrong=nan", "--seed=x", "--unknown=1"]
)
def test_bad_flags_end_with_code_two(tmp_path, capsys, argument: str):
    with pytest.raises(SystemExit) as stop:
        main(["show", f"--out={tmp_path / 'a.png'}", argument])
    assert stop.value.code == 2 and "error:" in capsys.readouterr().err


def test_runs_as_a_module(tmp_path):
    command = [sys.executable, "-m", "process_gen.scenes", "judge", "--prompt=", "--image=a.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "the prompt is empty" in done.stderr


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["render", f"--prompt={PROMPT}", "--out=~/a.png"]) == 0
    assert main(["judge", f"--prompt={PROMPT}", "--image=~/a.png"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_command_whose_reader_has_gone_ends_without_a_word():
    command = [sys.executable, "-m", "process_gen.scenes", "prompts", "--count=200"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert (process.wait(timeout=60), process.stderr.read()) == (141, "")
