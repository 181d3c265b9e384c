import dataclasses
import errno
import json
import pathlib
import shutil

import numpy as np
import PIL.Image
import pytest
import skimage

from process_gen.data import stored
from process_gen.data.encode import encode_trajectory
from process_gen.data.errors import BadTrajectory, TooManyBadTrajectories, allowance
from process_gen.data.formats.jsonl import LISTING
from process_gen.data.formats.opening import open_stored
from process_gen.data.images import read_image
from process_gen.data.loader import make_loader
from process_gen.data.packing import Policy
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.record import trajectory_to_json
from process_gen.trajectory.sampled import SampledTrajectory
from process_gen.trajectory.stages import Plan, Turn, draft, refinement, targets_of
from tests.data.conftest import assert_same_trajectory

PHOTOGRAPHS = pathlib.Path(skimage.__file__).parent / "data"
SIZE = (24, 32)


def save(path, array, **options):
    PIL.Image.fromarray(array).save(path, **options)
    return path


def write(folder, *entries):
    """Lists entries, or lines as they are, beside a black image that is called `a.png`."""
    save(folder / "a.png", np.zeros((4, 4, 3), np.uint8))
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (folder / LISTING).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def photographs(tmp_path):
    """A trajectory made of photographs: PNG and JPEG, colour and grey, in folders."""
    (tmp_path / "in").mkdir()
    for name in ("astronaut.png", "camera.png", "chelsea.png", "rocket.jpg"):
        shutil.copy(PHOTOGRAPHS / name, tmp_path / "in" / name)
    steps = [
        {"instruction": "show a cat", "description": "a cat", "sketch": "in/chelsea.png"},
        {
            "instruction": "a rocket instead",
            "description": "a rocket",
            "sketch": "in/camera.png",
            "inspect": "this is a man with a camera",
            "refine": "show the rocket",
            "refined": "in/rocket.jpg",
        },
        {
            "instruction": "add her",
            "description": "an astronaut",
            "sketch": "./in/../in/astronaut.png",
            "plan_ok": False,
        },
    ]
    return write(tmp_path, {"prompt": "an astronaut", "steps": steps, "metadata": {"by": "skimage"}})


def test_photographs_become_a_trajectory(photographs):
    trajectory = open_stored(photographs, SIZE)[0]
    assert trajectory.uid == f"{photographs.name}:1" and trajectory.metadata == {"by": "skimage"}
    assert [turn.refines for turn in trajectory.turns] == [False, False, True, False]
    cat, rocket, astronaut = trajectory.steps
    for image in (cat.sketch, rocket.sketch, rocket.refined, astronaut.sketch):
        assert image.shape == (*SIZE, 3) and image.dtype == np.uint8 and image.std() > 20
    assert (rocket.sketch[..., 0] == rocket.sketch[..., 2]).all(), "a grey photograph"
    assert [turn.image_ok for turn in trajectory.turns] == [True, False, True, True]
    assert [turn.before_weight for turn in trajectory.turns] == [1, 1, 1, 0]
    assert rocket.refine == "show the rocket" and targets_of(trajectory.turns) == [0, 2, 2, 3]
    assert rocket.inspect == "this is a man with a camera" and astronaut.plan.description == "an astronaut"
    # The picture is the middle of the photograph: chelsea is 451 x 300, a little wider than 4:3.
    whole = np.asarray(PIL.Image.open(PHOTOGRAPHS / "chelsea.png").convert("RGB"))
    middle = PIL.Image.fromarray(whole[:, 25:425]).resize(SIZE[::-1], PIL.Image.Resampling.LANCZOS)
    assert np.abs(cat.sketch.astype(int) - np.asarray(middle)).mean() < 4


def test_photographs_train(photographs, toy_tokenizer):
    layout = Layout(image_size=SIZE, prompt=64, before=120, after=120, turns=4, trajectories=1)
    batch = next(iter(make_loader(open_stored(photographs, SIZE), toy_tokenizer, layout, 2, epochs=1)))
    assert batch["present"].tolist() == [[True] * 4, [False] * 4]
    assert batch["target"].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]
    assert toy_tokenizer.decode(batch["before_tokens"][0, 2]) == "<refine>show the rocket</refine>"


def test_every_mode_is_read(tmp_path):
    grey = np.full((20, 30), 100, np.uint8)
    colour = np.stack([grey, grey // 2, grey // 4], -1)
    assert (read_image(save(tmp_path / "l.png", grey), SIZE) == 100).all()
    assert (read_image(save(tmp_path / "deep.png", grey.astype(np.uint16) * 257), SIZE) == 100).all()
    assert (read_image(save(tmp_path / "rgb.png", colour), SIZE) == (100, 50, 25)).all()
    clear = np.dstack([colour, np.zeros((20, 30), np.uint8)])
    assert (read_image(save(tmp_path / "rgba.png", clear), SIZE) == 255).all(), "transparent means white"
    half = np.dstack([colour, np.full((20, 30), 51, np.uint8)])
    assert abs(int(read_image(save(tmp_path / "half.png", half), SIZE)[0, 0, 0]) - 224) <= 1
    palette = PIL.Image.fromarray(colour).quantize(4)
    palette.save(tmp_path / "p.png")
    assert np.abs(read_image(tmp_path / "p.png", SIZE).astype(int) - (100, 50, 25)).max() <= 3
    palette.save(tmp_path / "keyed.png", transparency=int(np.asarray(palette)[0, 0]))
    assert (read_image(tmp_path / "keyed.png", SIZE) == 255).all()
    PIL.Image.fromarray(colour).convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert read_image(tmp_path / "cmyk.jpg", SIZE).shape == (*SIZE, 3)
    PIL.Image.fromarray(grey > 50).save(tmp_path / "bits.png")
    assert (read_image(tmp_path / "bits.png", SIZE) == 255).all()


GOOD = {"prompt": "a", "turns": [{"image": "a.png"}]}


def step(**fields):
    return {"prompt": "a", "steps": [{"sketch": "a.png"}, fields]}


def turn(**fields):
    return {"prompt": "a", "turns": [{"image": "a.png"}, fields]}


HALF = "half \ud83d"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{not json", "line 2: line is not JSON: Expecting property name"),
        ("[1]", "line 2: line is not a JSON object"),
        ({"steps": [{"sketch": "a.png"}]}, "line 2: prompt is missing"),
        ({"prompt": " ", "steps": [{"sketch": "a.png"}]}, "line 2: prompt is empty"),
        ({"prompt": 3, "steps": [{"sketch": "a.png"}]}, "line 2: prompt is not text"),
        ({**GOOD, "prompt": "a <refine> b"}, "line 2: prompt must not contain the token <refi"),
        ({"prompt": "a", "steps": []}, "line 2: steps must be a list of at least one step"),
        ({"prompt": "a", "turns": {}}, "line 2: turns must be a list of at least one turn"),
        ({"prompt": "a"}, "line 2: turns must be a list of at least one turn"),
        ({**GOOD, "steps": [{"sketch": "a.png"}]}, "line 2: line has both turns and steps"),
        ("[" * 100_000, "line 2: line is not JSON"),
        ({"promt": "a", "steps": []}, "line 2: prompt is missing; is 'promt' meant for it"),
        ({**GOOD, "metadata": [1]}, "line 2: metadata is not an object"),
        (step(), r"line 2: steps\[1\].sketch is missing"),
        (step(sketch="a.png", instruction="b"), r"line 2: steps\[1\].description is missing beside instr"),
        (step(sketch="a.png", refined="a.png"), r"line 2: steps\[1\].refine is missing beside refined"),
        (step(sketch="a.png", sketch_ok=1), r"line 2: steps\[1\].sketch_ok is neither true nor false"),
        (step(sketch="a.png", plan_ok="no"), r"line 2: steps\[1\].plan_ok is neither true nor false"),
        (step(sketch="../a.png"), r"line 2: steps\[1\].sketch leaves the folder: '../a.png'"),
        (step(sketch="/etc/passwd"), r"line 2: steps\[1\].sketch leaves the folder: '/etc/passwd'"),
        (step(sketch="b/../../a.png"), r"line 2: steps\[1\].sketch leaves the folder: 'b/../../a.png'"),
        (step(sketch="a\0.png"), r"line 2: steps\[1\].sketch is no file name"),
        (step(sketch=""), r"line 2: steps\[1\].sketch is no file name"),
        (step(sketch="a.png", refine="x <ins>", refined="a.png"), r"line 2: steps\[1\].refine must not cont"),
        (turn(), r"line 2: turns\[1\].image is missing"),
        (turn(image=3), r"line 2: turns\[1\].image is not text"),
        (turn(image="../a.png"), r"line 2: turns\[1\].image leaves the folder: '../a.png'"),
        (turn(image="a.png", instruction="b"), r"line 2: turns\[1\].description is missing beside instr"),
        (turn(image="a.png", description="b"), r"line 2: turns\[1\].instruction is missing beside descr"),
        (turn(image="a.png", refine=3), r"line 2: turns\[1\].refine is not text"),
        (turn(image="a.png", refine="a </refine> b"), r"line 2: turns\[1\].refine must not contain"),
        (turn(image="a.png", refine="a", before="b"), r"line 2: turns\[1\].refine and before exclude"),
        (turn(image="a.png", refine="a", refines=False), r"line 2: turns\[1\].refines does not go with ref"),
        (turn(image="a.png", refines="yes"), r"line 2: turns\[1\].refines is neither true nor false"),
        (turn(image="a.png", image_ok=0), r"line 2: turns\[1\].image_ok is neither true nor false"),
        (turn(image="a.png", image_weight=-1), r"line 2: turns\[1\].image_weight is not a number of at le"),
        (turn(image="a.png", after_weight="1"), r"line 2: turns\[1\].after_weight is not a number"),
        (turn(image="a.png", before_weight=True), r"line 2: turns\[1\].before_weight is not a number"),
        (turn(image="a.png", image_weight=float("nan")), r"line 2: turns\[1\].image_weight is not a number"),
        ({"prompt": "a", "turns": [{"image": "a.png", "refine": "b"}]}, r"line 2: turns\[0\] corrects an im"),
        ({**GOOD, "prompt": HALF}, r"line 2: prompt holds an unpaired surrogate, '\\ud83d', behind 'half '"),
        ({**GOOD, "uid": HALF}, "line 2: uid holds an unpaired surrogate"),
        ({**GOOD, "metadata": {"a": [HALF]}}, "line 2: metadata holds an unpaired surrogate"),
        (turn(image=HALF), r"line 2: turns\[1\].image holds an unpaired surrogate"),
        (turn(image="a.png", inspect=HALF), r"line 2: turns\[1\].inspect holds an unpaired surrogate"),
        (turn(image="a.png", before=HALF), r"line 2: turns\[1\].before holds an unpaired surrogate"),
        (step(sketch="a.png", inspect=HALF), r"line 2: steps\[1\].inspect holds an unpaired surrogate"),
        (step(sketch=HALF), r"line 2: steps\[1\].sketch holds an unpaired surrogate"),
        ({**GOOD, "mode": "proces"}, "line 2: mode must be one of process, plan_only, single_pass, got"),
        ({**GOOD, "stopped": "tired"}, "line 2: stopped must be one of model, cap"),
        ({**GOOD, "seed": 1.5}, "line 2: seed is not a whole number"),
        ({**GOOD, "seconds": "1"}, "line 2: seconds is not a number"),
        ({**GOOD, "verdict": [1]}, "line 2: verdict is not an object"),
        ({**GOOD, "doubts": [0.5, 2]}, "line 2: doubts is not a list of probabilities"),
    ],
)
def test_a_bad_line_is_named_or_skipped(tmp_path, entry, message):
    write(tmp_path, GOOD, entry, GOOD)
    with pytest.raises(BadTrajectory, match=f"{LISTING}, {message}"):
        open_stored(tmp_path, SIZE)
    source = open_stored(tmp_path, SIZE, bad="skip")
    assert [source[i].uid.rpartition(":")[2] for i in range(len(source))] == ["1", "3"]
    assert len(source.skipped) == 1 and "line 2" in source.skipped[0]
    write(tmp_path, GOOD, entry, entry)
    with pytest.raises(TooManyBadTrajectories, match=r"2 of 3 lines .* are bad, 50.00% may be"):
        open_stored(tmp_path, SIZE, bad="skip")


def test_what_a_hub_keeps_as_links_is_read(tmp_path):
    """Listing and images are links out of the folder, which is one itself."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir(), snapshot.mkdir(parents=True)
    save(blobs / "4be1", np.full((4, 4, 3), 7, np.uint8), format="PNG")
    write(blobs, GOOD)
    (blobs / LISTING).rename(blobs / "98ab")
    for name, blob in ((LISTING, "98ab"), ("a.png", "4be1")):
        (snapshot / name).symlink_to(pathlib.Path("..", "..", "blobs", blob))
    (tmp_path / "mine").symlink_to(snapshot)
    assert open_stored(tmp_path / "mine", SIZE)[0].image.max() == 7


def test_a_source_is_known_by_what_it_lists_and_not_by_its_place(tmp_path):
    names = []
    for folder, entry in (("a", GOOD), ("b", GOOD), ("a", {**GOOD, "prompt": "another"})):
        (tmp_path / folder).mkdir(exist_ok=True)
        write(tmp_path / folder, entry)
        names.append(open_stored(tmp_path / folder, SIZE).name)
    assert names[0] == names[1] != names[2]


def test_text_must_be_utf8(tmp_path):
    (tmp_path / LISTING).write_bytes(b'{"prompt": "caf\xe9", "steps": []}\n')
    with pytest.raises(BadTrajectory, match="line 1: line is not UTF-8"):
        open_stored(tmp_path, SIZE)
    with pytest.raises(FileNotFoundError, match=f"{LISTING} does not exist"):
        open_stored(tmp_path / "nowhere", SIZE, form="folder")


def broken_files(folder):
    photograph = (PHOTOGRAPHS / "coffee.png").read_bytes()
    (folder / "cut.png").write_bytes(photograph[: len(photograph) // 2])
    (folder / "flipped.png").write_bytes(photograph[:40000] + b"\xff\x00" * 50 + photograph[40100:])
    (folder / "cut.jpg").write_bytes((PHOTOGRAPHS / "rocket.jpg").read_bytes()[:20000])
    (folder / "text.png").write_text("not an image")
    (folder / "empty.png").write_bytes(b"")
    save(folder / "animated.gif", np.zeros((4, 4), np.uint8))
    (folder / "folder.png").mkdir()


BROKEN = "cut.png flipped.png cut.jpg text.png empty.png animated.gif folder.png missing.png"


@pytest.mark.parametrize("name", BROKEN.split())
def test_a_broken_image_is_named_or_skipped_by_the_loader(tmp_path, toy_tokenizer, name):
    broken_files(tmp_path)
    source = open_stored(write(tmp_path, GOOD, turn(image=name)), SIZE)
    problem = "does not exist" if name == "missing.png" else "is no readable PNG, JPEG or WebP"
    with pytest.raises(BadTrajectory, match=rf"{LISTING}, line 2: turns\[1\].image {problem}: '{name}'"):
        source[1]
    layout = Layout(image_size=SIZE, turns=2, trajectories=2)
    policy = Policy(bad="skip", budget=0.5)
    batches = list(make_loader(source, toy_tokenizer, layout, 1, epochs=1, policy=policy))
    assert sum(int(batch["is_first"].sum()) for batch in batches) == 1


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    write(tmp_path, GOOD)
    save(tmp_path / "a.png", np.zeros((300, 400), np.uint8))
    monkeypatch.setattr("process_gen.data.images.MAX_PIXELS", 100_000)
    with pytest.raises(BadTrajectory, match="400 x 300 pixels, at most 100000 are read"):
        open_stored(tmp_path, SIZE)[0]
    monkeypatch.setattr("process_gen.data.images.MAX_PIXELS", 10**9)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadTrajectory, match="no readable PNG, JPEG or WebP.*decompression bomb"):
        open_stored(tmp_path, SIZE)[0]


def test_a_prompt_may_hold_an_image_between_two_texts(tmp_path):
    save(tmp_path / "in.png", np.full((40, 40, 3), 7, np.uint8))
    turns = [{"image": "a.png"}]
    write(
        tmp_path,
        {"image": "in.png", "instruction": "make it red", "turns": turns},
        {"prompt": "like this", "image": "in.png", "instruction": "but red", "turns": turns},
        {"prompt": "what is this", "image": "in.png", "steps": [{"sketch": "a.png"}]},
        {"prompt": "a", "turns": turns},
    )
    source = open_stored(tmp_path, SIZE)
    found = [source[i] for i in range(4)]
    assert [(t.prompt, t.instruction) for t in found] == [
        ("", "make it red"),
        ("like this", "but red"),
        ("what is this", ""),
        ("a", ""),
    ]
    for trajectory in found[:3]:
        assert trajectory.prompt_image.shape == (*SIZE, 3) and (trajectory.prompt_image == 7).all()
    assert found[3].prompt_image is None


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"image": "in.png"}, "prompt is missing"),
        ({"image": "in.png", "instruction": " "}, "instruction is empty"),
        ({"image": "in.png", "prompt": " ", "instruction": "b"}, "prompt is empty"),
        ({"image": "in.png", "instruction": "<ins>b"}, "instruction must not contain the token <ins>"),
        ({"image": "in.png", "instruction": HALF}, "instruction holds an unpaired surrogate"),
        ({"image": HALF, "instruction": "b"}, "image holds an unpaired surrogate"),
        ({"prompt": "a", "instruction": "b"}, "instruction stands after an image, and there is no image"),
        ({"prompt": "a", "image": 3}, "image is not text"),
        ({"prompt": "a", "image": "../in.png"}, "image leaves the folder"),
        ({"imag": "in.png", "instruction": "a"}, "there is no image"),
    ],
)
def test_a_bad_prompt_is_named(tmp_path, entry, message):
    write(tmp_path, {**entry, "turns": [{"image": "a.png"}]})
    with pytest.raises(BadTrajectory, match=f"{LISTING}, line 1: .*{message}"):
        open_stored(tmp_path, SIZE)


def test_a_broken_input_image_is_named(tmp_path):
    broken_files(tmp_path)
    write(tmp_path, {"prompt": "a", "image": "cut.jpg", "turns": [{"image": "cut.png"}]})
    with pytest.raises(BadTrajectory, match=r"line 1: image is no readable .*: 'cut.jpg'"):
        open_stored(tmp_path, SIZE)[0]
    write(tmp_path, {"prompt": "a", "steps": [{"sketch": "a.png", "refine": "b", "refined": "cut.png"}]})
    with pytest.raises(BadTrajectory, match=r"line 1: steps\[0\].refined is no readable .*: 'cut.png'"):
        open_stored(tmp_path, SIZE)[0]


def test_steps_and_turns_of_the_same_trajectory_are_read_alike(tmp_path):
    for name, shade in (("b.png", 2), ("c.png", 3)):
        save(tmp_path / name, np.full((4, 4, 3), shade, np.uint8))
    plan = {"instruction": "add it", "description": "all of it"}
    steps = [
        {**plan, "sketch": "a.png", "inspect": "no", "refine": "move it", "refined": "b.png"},
        {**plan, "sketch": "a.png", "inspect": "no", "refine": "b", "refined": "b.png", "sketch_ok": True},
        {**plan, "sketch": "c.png", "plan_ok": False},
        {"sketch": "c.png", "sketch_ok": False},
    ]
    turns = [
        {**plan, "image": "a.png", "inspect": "no"},
        {"refine": "move it", "image": "b.png"},
        {**plan, "image": "a.png", "inspect": "no", "image_ok": True},
        {"refine": "b", "image": "b.png"},
        {**plan, "image": "c.png", "before_weight": 0},
        {"image": "c.png", "image_ok": False},
    ]
    lines = [{"uid": "x", "prompt": "a", "steps": steps}, {"uid": "x", "prompt": "a", "turns": turns}]
    old, new = (open_stored(write(tmp_path, line), SIZE)[0] for line in lines)
    assert_same_trajectory(old, new)
    assert targets_of(new.turns) == [1, 1, 2, 3, 4, -1]
    assert [len(step.turns) for step in new.steps] == [2, 2, 1, 1]


def test_a_byte_order_mark_is_read_and_half_a_character_is_named(tmp_path):
    """As editors and exports of web pages leave them."""
    lines = [json.dumps({**GOOD, "prompt": f"{n}"}) for n in range(4)]
    write(tmp_path).joinpath(LISTING).write_bytes("\ufeff".encode() + "\r\n".join(lines).encode())
    source = open_stored(tmp_path, SIZE)
    assert [source[i].prompt for i in range(len(source))] == ["0", "1", "2", "3"]
    lines[2] = json.dumps({**GOOD, "prompt": "a red circle \ud83d"})
    with pytest.raises(BadTrajectory, match="line 3: prompt holds an unpaired surrogate") as error:
        open_stored(write(tmp_path, *lines), SIZE)
    assert str(error.value).encode("utf-8"), "the message itself is text"


def sampled(turns, **fields):
    return SampledTrajectory("a cat", tuple(turns), "s-1", seed=7, sampling_steps=9, **fields)


def test_what_the_sampler_writes_is_read(tmp_path, toy_tokenizer):
    shades = [np.full((*SIZE, 3), shade, np.uint8) for shade in range(5)]
    turns = [
        draft(shades[0], Plan("draw a red circle", "a red circle"), "no"),
        refinement(shades[1], "no star", "the square should be in b2", image_ok=False),
        refinement(shades[2], "a star"),
        draft(shades[3], None, before_weight=0.0, image_weight=0.25),
    ]
    trajectory = sampled(turns, stopped="cap", given=1, verdict={"ok": True, "constraints": []})
    for index, shade in enumerate(shades):
        save(tmp_path / f"{index}.png", shade)
    line = trajectory_to_json(trajectory, [f"{index}.png" for index in range(4)])
    found = open_stored(write(tmp_path, line), SIZE)[0]
    wanted = dict(mode="process", seed=7, stopped="cap", given=1, sampling_steps=9, seconds=0.0)
    assert found.metadata == {**wanted, "verdict": trajectory.verdict}
    assert_same_trajectory(dataclasses.replace(found, metadata={}), trajectory)
    layout = Layout(image_size=SIZE, prompt=64, before=120, after=120, turns=4, corrections=2)
    arrays = encode_trajectory(toy_tokenizer, layout, found)
    assert arrays["target"].tolist() == [0, 1, 0, 0] and arrays["image_weight"].tolist() == [1, 1, 1, 0.25]


def test_what_a_model_garbled_is_read_and_named_by_the_loader(tmp_path, toy_tokenizer):
    layout, blank = Layout(image_size=SIZE), np.zeros((*SIZE, 3), np.uint8)
    for text, refines in (("<ins>a</ins>", False), ("", False), ("<refine>a", True)):
        turns = [Turn(blank), Turn(blank, text, refines=refines)]
        line = trajectory_to_json(sampled(turns), ["a.png", "a.png"])
        found = open_stored(write(tmp_path, line), SIZE)[0]
        assert (found.turns[1].before, found.turns[1].refines) == (text, refines)
        with pytest.raises(BadTrajectory, match="line 1: the text of a .* is malformed: "):
            encode_trajectory(toy_tokenizer, layout, found)


def test_a_few_bad_files_do_not_stop_the_training_of_a_small_data_set():
    assert allowance(5) == 0.5 and allowance(100) == 0.1
    assert allowance(10_000) == allowance(10**7) == 0.001


def test_a_file_system_that_is_gone_for_a_while_leaves_nothing_out(tmp_path, monkeypatch):
    write(
        tmp_path, {"prompt": "a", "turns": [{"instruction": "draw", "description": "it", "image": "a.png"}]}
    )
    source = open_stored(tmp_path, SIZE, bad="skip")
    left, opened, waited = [2], type(source.rows).open, []

    def shaky(rows, index, path):
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return opened(rows, index, path)

    monkeypatch.setattr(type(source.rows), "open", shaky)
    monkeypatch.setattr(stored.time, "sleep", waited.append)
    assert source[0].turns[0].image.shape == (*SIZE, 3) and waited == [1, 2]
    left[0] = 1
    assert source.without_pixels(0)[0].turns[0].image.shape == (*SIZE, 3)
    left[0] = 99
    with pytest.raises(OSError, match="'a.png' cannot be read: .*Stale file handle"):
        source[0]
