"""`python -m process_gen.sample`: what it prints, what it leaves, and what it says to bad input."""

from __future__ import annotations

import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import types

import flax.linen as nn
import jax
import numpy as np
import PIL.Image
import pytest

from process_gen import sample
from process_gen.checkpoints.errors import CheckpointMismatch, CheckpointNotFound
from process_gen.checkpoints.export import save_weights
from process_gen.data.formats.opening import open_stored
from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.distributed import lock, stopping
from process_gen.experiment import builders, cli
from process_gen.sampling import SamplerError
from process_gen.trajectory.batch import Batch
from process_gen.weights.restore import load_model, load_sampler
from tests.own_process import free_port, printed

ROOT = pathlib.Path(__file__).parent.parent
SHOWN = str(ROOT / "notebooks" / "images" / "trajectory.png")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A file of random weights of the `:debug` config."""
    return random_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def seeing(tmp_path_factory) -> str:
    """The same with room for an input image in its prompts."""
    return random_weights(tmp_path_factory.mktemp("seeing"), prompt_image=True, instruction=16)


def random_weights(folder: pathlib.Path, kv_heads: int = 1, **layout) -> str:
    config = cli.load_config("configs/scenes.py:debug")
    with config.unlocked():
        config.layout.update(layout)
        config.model.kv_heads = kv_heads
    model = builders.build_model(config, scenes_tokenizer())
    batch = Batch.spec(model.layout, 1)
    shapes = nn.meta.unbox(jax.eval_shape(lambda b: model.init(jax.random.key(0), b)["params"], batch))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.1 * rng.standard_normal(x.shape).astype(np.float32), shapes)
    path = str(folder / "debug.safetensors")
    save_weights(path, params, {"config": builders.to_json(config), "tokenizer": "scenes"})
    return path


@pytest.fixture
def values(weights, tmp_path) -> types.SimpleNamespace:
    """The flags of a command that works."""
    not_given = (
        "prompts_file", "image_size", "tokenizer", "temperature", "decision_temperature", "refine_threshold",
        "text_scale", "image_scale", "config", "flow_steps", "max_turns", "max_flow_steps", "dtype",
        "coordinator", "num_processes", "process_id",
    )  # fmt: skip
    return types.SimpleNamespace(
        workdir=weights,
        prompts=["a red circle", "a blue dog", "a red circle"],
        images=[],
        keep_shape=False,
        answer=False,
        output_dir=str(tmp_path / "out"),
        which="ema",
        mode="single_pass",
        seed=3,
        batch_size=2,
        mesh="",
        resume=True,
        page_rows=200,
        strips=True,
        **dict.fromkeys(not_given),
    )


@pytest.fixture
def command(values, monkeypatch, capsys):
    """Runs `main` with some flags changed, errors as `cli.run` reports them: exit code, stdout, stderr."""

    def call(**changes):
        vars(values).update(changes)
        monkeypatch.setattr(sample, "flags", types.SimpleNamespace(FLAGS=values))
        code = 0
        try:
            sample.main(["sample"])
        except sample.ERRORS as error:
            with pytest.raises(SystemExit) as left:
                cli.fail(error)
            code = left.value.code
        return code, *capsys.readouterr()

    return call


def listed(folder: str | pathlib.Path) -> list[dict]:
    """The lines of a listing, by name."""
    lines = (pathlib.Path(folder) / "trajectories.jsonl").read_text().splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda line: line["uid"])


def test_prompts_become_a_table_and_a_report(command, values):
    code, out, err = command()
    assert code == 0 and "'dog' not in the vocabulary" in err and "3 of 3 prompts" in err
    assert out.count("a red circle") == 2 and "not judged" in out and "wrong:" in out
    folder, lines = pathlib.Path(values.output_dir), listed(values.output_dir)
    assert [line["prompt"] for line in lines] == values.prompts
    assert [line["seed"] for line in lines] == [3, 3, 4], "a prompt that comes again takes the next seed"
    assert len(list((folder / "strips").iterdir())) == 3 and (folder / "index.html").exists()


def test_what_is_drawn_is_data_for_training(command, values):
    assert command(mode="process")[0] == 0
    source = open_stored(values.output_dir, (32, 32))
    assert sorted(source[i].prompt for i in range(3)) == sorted(values.prompts)
    images = {one["uid"]: one["turns"][-1]["image"] for one in listed(values.output_dir)}
    for i in range(3):
        with PIL.Image.open(pathlib.Path(values.output_dir) / images[source[i].uid]) as picture:
            np.testing.assert_array_equal(source[i].image, np.asarray(picture))


def test_a_stop_keeps_what_is_finished_and_the_same_command_goes_on(command, values, monkeypatch):
    def stop_after_the_first(text):
        if not text.startswith("0 of"):
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(sample.cli, "show_progress", stop_after_the_first)
        with pytest.raises(stopping.Stopped, match=r"[12] of 3 prompts are finished: .*index.html"):
            command()
    before = listed(values.output_dir)
    assert 1 <= len(before) <= 2
    listing = pathlib.Path(values.output_dir) / "trajectories.jsonl"
    listing.write_bytes(listing.read_bytes() + b'{"uid": "0002", "pro')  # as if the machine had gone
    code, out, err = command()
    after = listed(values.output_dir)
    assert code == 0 and f"{len(before)} of 3 prompts are listed already" in err
    assert [line["seed"] for line in after] == [3, 3, 4] and all(line in after for line in before)
    assert out.count("a red circle") == 2, "the table has those that were there before"
    code, _, err = command()
    assert code == 0 and "3 of 3 prompts are listed already" in err and listed(values.output_dir) == after


def test_a_folder_is_drawn_into_by_one_at_a_time(command, values):
    with lock.hold(values.output_dir, "sampling"):
        code, _, err = command()
        assert code == 2 and "sampling is going on in" in err
        assert [path.name for path in pathlib.Path(values.output_dir).iterdir()] == [lock.NAME]
    assert command()[0] == 0 and not (pathlib.Path(values.output_dir) / lock.NAME).exists()


def test_more_seeds_join_a_listing_and_other_settings_do_not(command, values):
    assert command(prompts=["a red circle"])[0] == 0
    assert command(prompts=["a red circle"], seed=9)[0] == 0
    lines = listed(values.output_dir)
    assert [(line["uid"], line["seed"]) for line in lines] == [("0000", 3), ("0001", 9)]
    code, _, err = command(prompts=["a red circle"], flow_steps=3)
    assert code == 2 and "were drawn with flow_steps 2, not 3: choose another folder" in err
    code, _, _ = command(prompts=["a red circle"], flow_steps=3, resume=False)
    assert code == 0 and [line["sampling_steps"] for line in listed(values.output_dir)] == [3]
    settings = pathlib.Path(values.output_dir, "settings.json")
    settings.write_text("[]")
    assert "no settings in settings.json" in command(prompts=["a red circle"], resume=True)[2]
    settings.unlink()
    code, _, err = command(prompts=["a red circle"], resume=True)
    assert code == 2 and "was not written by such a run" in err


def test_two_hosts_fill_one_listing(command, values, tmp_path):
    prompts = [f"a {colour} {shape}" for colour in ("red", "blue", "green") for shape in ("circle", "star")]
    alone = str(tmp_path / "alone")
    assert command(prompts=prompts, output_dir=alone)[0] == 0
    file, shared = tmp_path / "prompts.txt", str(tmp_path / "shared")
    file.write_text("\n".join(prompts))
    flags = [f"--workdir={values.workdir}", f"--prompts_file={file}", f"--output_dir={shared}", "--seed=3"]
    flags += ["--mode=single_pass", "--batch_size=2", "--num_processes=2"]
    flags += [f"--coordinator=localhost:{free_port()}"]
    command_line = [sys.executable, "-m", "process_gen.sample", *flags]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running = [subprocess.Popen([*command_line, f"--process_id={i}"], env=env, **pipes) for i in range(2)]
    for i, process in enumerate(running):
        out, error = process.communicate(timeout=180)
        assert process.returncode == 0, error[-2000:]
        assert ("index.html" in out) == (i == 0) and "3 of 3 prompts" in error
    assert not list(pathlib.Path(shared).glob("trajectories.*.jsonl"))
    for one, other in zip(listed(shared), listed(alone), strict=True):
        same = ("uid", "prompt", "seed")
        assert [one[name] for name in same] == [other[name] for name in same]
        images = [pathlib.Path(folder) / one["turns"][0]["image"] for folder in (shared, alone)]
        assert len({image.read_bytes() for image in images}) == 1


def test_a_part_of_a_host_that_was_cut_off_is_gathered(command, values):
    assert command()[0] == 0
    folder = pathlib.Path(values.output_dir)
    lines = (folder / "trajectories.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "trajectories.jsonl").write_bytes(lines[0])
    (folder / "trajectories.1.jsonl").write_bytes(b"".join([*lines[:2], lines[2][:40]]))
    code, _, err = command()
    assert code == 0 and "2 of 3 prompts are listed already" in err and "1 of 1 prompts" in err
    assert len(listed(folder)) == 3 and not (folder / "trajectories.1.jsonl").exists()


def test_the_page_has_so_many_rows(command, values):
    code, out, _ = command(page_rows=2)
    assert code == 0 and "and 1 more" in out and len(listed(values.output_dir)) == 3
    page = (pathlib.Path(values.output_dir) / "index.html").read_text()
    assert page.count("<article") == 2 and "2 of 3" in page


def test_an_input_image_of_any_size_is_drawn_from_and_asked_about(command, values, seeing, tmp_path):
    dark = str(tmp_path / "dark.png")
    PIL.Image.new("LA", (50, 20), (9, 255)).save(dark)
    changes = dict(workdir=seeing, prompts=["a red circle"] * 2, seed=3)
    finals = []
    for number, images in enumerate(([], [SHOWN], [SHOWN, dark])):
        folder = tmp_path / str(number)
        code, _, err = command(**changes, images=images, output_dir=str(folder))
        assert code == 0, err
        finals.append([path.read_bytes() for path in sorted((folder / "images").glob("*_sketch.png"))])
    assert finals[0][0] != finals[1][0] == finals[2][0] and finals[1][1] != finals[2][1]
    settings = tmp_path / "1" / "settings.json"
    older = json.loads(settings.read_text()) | {"images": [SHOWN]}
    settings.write_text(json.dumps(older))
    for images, there in (([SHOWN], 2), ([SHOWN, dark], 1)):  # other images are drawn
        code, _, err = command(**changes, images=images, output_dir=str(tmp_path / "1"), resume=True)
        assert code == 0 and f"{there} of 2 prompts are listed already" in err
    code, out, _ = command(**changes, images=[SHOWN], answer=True, output_dir="/proc/none")
    assert code == 0 and out.count("a red circle\n    ") == 2


@pytest.mark.slow  # a model with a ViT and an autoencoder, all stages
def test_published_weights_edit_an_image_and_answer(command, tmp_path):
    """A folder in the published layout, as it was downloaded, with a config that says how to use it."""
    published = dict(
        workdir=str(ROOT / "tests" / "golden" / "bagel_tiny"),
        config=str(ROOT / "configs" / "bagel_7b.py:debug"),
        mode=None,
        prompts=["a red circle"],
    )
    shown = str(tmp_path / "shown.png")
    PIL.Image.new("RGBA", (50, 80), (200, 9, 9, 255)).save(shown)
    code, out, err = command(**published, images=[shown], max_turns=1)
    assert code == 0 and "a red circle" in out, err
    with PIL.Image.open(tmp_path / "out" / "images" / "0000_input.png") as given:
        assert given.size == (32, 32) and given.getpixel((3, 3)) == (200, 9, 9)
    code, out, err = command(**published, images=[shown], answer=True)
    assert code == 0 and out.startswith("a red circle\n    "), err


def test_an_input_image_keeps_its_shape_where_that_is_asked_for(command, seeing, tmp_path):
    paths = []
    for name, size in (("wide", (120, 60)), ("tall", (40, 80)), ("wide again", (240, 120))):
        paths.append(str(tmp_path / f"{name}.png"))
        PIL.Image.new("RGB", size, (9, 90, 200)).save(paths[-1])
    prompts = ["a red circle"] * 3
    code, out, err = command(workdir=seeing, prompts=prompts, images=paths, keep_shape=True, max_turns=1)
    assert code == 0, err
    folder = tmp_path / "out" / "images"
    shapes = [PIL.Image.open(folder / f"{i:04d}_1_sketch.png").size for i in range(3)]
    given = [PIL.Image.open(folder / f"{i:04d}_input.png").size for i in range(3)]
    assert shapes == given and shapes[0] == shapes[2] != shapes[1]
    assert shapes[0][0] == 2 * shapes[0][1] and shapes[1][1] == 2 * shapes[1][0]
    assert [line["seed"] for line in listed(tmp_path / "out")] == [3, 4, 5]


def test_a_prompt_alone_is_drawn_at_the_size_that_is_asked_for(command, tmp_path):
    code, _, err = command(prompts=["a red circle"], image_size=["16", "24"])
    assert code == 0, err
    with PIL.Image.open(tmp_path / "out" / "images" / "0000_1_sketch.png") as drawn:
        assert drawn.size == (24, 16)


BAD = [
    (dict(image_size=["16"]), "--image_size=16 is no HEIGHT,WIDTH in pixels"),
    (dict(image_size=["17", "16"]), "--image_size=17,16: image sides (17, 16) must be multiples of 8"),
    (dict(image_size=["16", "16"], keep_shape=True), "and --keep_shape contradict each other"),
    (dict(prompts=[""]), "the prompt is empty"),
    (dict(prompts=[]), "no prompt"),
    (dict(prompts=["a red circle " * 20]), "the prompt has 60 tokens, "),
    (dict(prompts=["a <refine> circle"]), "the prompt must not contain the token <refine>"),
    (dict(prompts=["a \udcff circle"]), "the prompt holds an unpaired surrogate"),
    (dict(dtype="float16"), "weights are held in float32 or bfloat16, got 'float16'"),
    (dict(max_flow_steps=1), "sampling.max_flow_steps must be 0, or at least the 2 steps of one image"),
    (dict(workdir="/nowhere/at/all"), "no such workdir"),
    (dict(workdir=str(ROOT / "tests")), "not the workdir of a training run"),
    (dict(workdir=str(ROOT / "tests" / "golden" / "bagel_tiny")), "carries no config, it was not made"),
    (dict(output_dir="/proc/none"), "cannot write to the output folder"),
    (dict(prompts_file="/nowhere.txt"), "cannot read the prompts file '/nowhere.txt': No such file"),
    (dict(which="emma"), "did you mean ema"),
    (dict(mode="procss"), "sampling.mode must be one of process, plan_only, single_pass"),
    (dict(images=["/nowhere.png"]), "cannot read the image '/nowhere.png': No such file"),
    (dict(images=[__file__]), "cannot read the image"),
    (dict(images=["a.png", "b.png"]), "3 prompts and 2 images: give one for all, or one per prompt"),
    (dict(images=[SHOWN]), "no room for an input image (layout.prompt_image is False)"),
    (dict(tokenizer="/nowhere"), "needs the tokenizer 'scenes': /nowhere holds no Qwen2 tokenizer"),
    (dict(batch_size=0), "rows must be at least 1"),
    (dict(flow_steps=-1), "sampling.flow_steps must be a whole number of at least 1"),
]


@pytest.mark.parametrize("changes, message", BAD, ids=[message[:20] for _, message in BAD])
def test_bad_input_is_one_line_and_code_2(command, changes, message):
    code, out, err = command(**changes)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_prompts_file_that_is_not_utf8_is_named_with_the_place(command, tmp_path, mark):
    path = tmp_path / "prompts.txt"
    path.write_bytes(mark + b"a red circle\nein gr\xfcner Kreis\n")
    code, _, err = command(prompts_file=str(path))
    assert code == 2 and f"{path} is not UTF-8: byte 0xfc at offset {19 + len(mark)} (line 2)" in err


def test_prompts_come_from_the_command_line_a_file_and_stdin(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbfa red star\r\n\r\n  two circles \n")
    stdin = io.BytesIO(b"a cross\na ring\n")
    assert sample.collect_prompts(["a dot", "-"], str(path), stdin) == [
        *("a dot", "a cross", "a ring"),
        *("a red star", "two circles"),
    ]
    with pytest.raises(sample.InputError, match="stdin holds no prompt"):
        sample.collect_prompts(["-"], None, io.BytesIO(b"\n \n"))


def test_the_module_is_a_command():
    command_line = [sys.executable, "-m", "process_gen.sample", "--prompts=", "--output_dir=/proc/none"]
    done = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr == "error: the prompt is empty\n"


def test_a_model_comes_back_as_it_was_saved(weights):
    restored = load_model(weights)
    assert restored.level_name == "default" and restored.source == weights
    assert restored.config["model"]["size"] == "debug"
    assert {x.dtype for x in jax.tree.leaves(restored.params)} == {np.dtype(np.float32)}
    sampler, _ = load_sampler(weights, flow_steps=3)
    assert sampler.config.flow_steps == 3
    assert sampler.config.max_turns == restored.config["sampling"]["max_turns"]
    assert sampler.config.mode == restored.config["data"]["mode"]
    with pytest.raises(SamplerError, match="did you mean flow_steps"):
        load_sampler(weights, flow_step=3)


def test_weights_are_held_in_half_the_room(weights, values):
    """Nothing but rounding tells them from float32, and the norms are what they were."""
    one, restored = load_sampler(weights, mode="single_pass", flow_steps=2, rows=1)
    half, halved = load_sampler(weights, mode="single_pass", flow_steps=2, rows=1, dtype="bfloat16")
    pairs = zip(jax.tree.leaves_with_path(restored.params), jax.tree.leaves(halved.params), strict=True)
    for (path, whole), cast in pairs:
        norm = any("norm" in str(part) for part in path)
        assert cast.dtype == (np.float32 if norm else jax.numpy.bfloat16), path
        np.testing.assert_allclose(whole, np.asarray(cast, np.float32), rtol=2**-8)
    assert halved.model.config.dtype == "bfloat16"
    drawn = [sampler.sample(values.prompts[:1])[0].image.astype(int) for sampler in (one, half)]
    assert 0 < np.abs(drawn[0] - drawn[1]).max() < 16


def test_weights_of_an_earlier_version_say_so(weights, tmp_path):
    restored, path = load_model(weights), str(tmp_path / "old.safetensors")
    config = json.loads(json.dumps(restored.config))
    layout = config["layout"]
    layout |= dict(
        plan=layout.pop("before"), inspect=layout.pop("after"), refine=14, steps=layout.pop("turns")
    )
    save_weights(path, restored.params, {"config": config, "tokenizer": "scenes"})
    with pytest.raises(builders.ConfigError, match="of an earlier version"):
        load_model(path)


def test_weights_of_another_model_are_refused(weights, tmp_path):
    restored, path = load_model(weights), str(tmp_path / "odd.safetensors")
    config = json.loads(json.dumps(restored.config))
    config["model"]["size"] = "scenes_s"
    save_weights(path, restored.params, {"config": config})
    with pytest.raises(CheckpointMismatch, match="do not fit their config"):
        load_model(path)
    save_weights(path, restored.params, {})
    with pytest.raises(CheckpointMismatch, match="carries no config"):
        load_model(path)
    save_weights(path, restored.params, {"config": config, "tokenizer": "words"})
    with pytest.raises(CheckpointMismatch, match="needs the tokenizer 'words'"):
        load_model(path)
    with pytest.raises(CheckpointNotFound, match="no 'params' weights, only ema"):
        load_model(weights, "params")


@pytest.mark.slow  # it compiles the sampler four times
def test_eight_devices_draw_what_one_does(tmp_path):
    script = pathlib.Path(__file__).parent / "sampling" / "eight_devices_sampler.py"
    assert printed(script, random_weights(tmp_path, kv_heads=2)).count("ok") == 3


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("tensors=2", "--mesh=tensors=2: 'tensors=2' is no AXIS=SIZE, as in data=2,tensor=4"),
        ("data=2,data=2", "'data=2' is no AXIS=SIZE"),
        ("data=3", "--mesh (data=3, fsdp=1, tensor=1, context=1) needs 3 devices, there are 1"),
        ("tensor=2", "--mesh (data=-1, fsdp=1, tensor=2, context=1): the fixed axes need a multiple of 2"),
    ],
)
def test_a_mesh_that_cannot_be_says_why(command, values, mesh, message):
    values.mesh = mesh
    code, _, err = command()
    assert code == 2 and message in err


def test_pictures_of_trajectories_can_be_left_out(command, tmp_path):
    code, _, _ = command(strips=False)
    assert code == 0 and not list(tmp_path.rglob("strips/*.png")) and list(tmp_path.rglob("images/*.png"))
