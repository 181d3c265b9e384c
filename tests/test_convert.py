"""`python -m process_gen.convert`: what goes in comes out, and one line for everything that cannot work."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import safetensors.numpy

from process_gen import convert
from process_gen.checkpoints import load
from process_gen.checkpoints.errors import CheckpointError, CheckpointMismatch, CheckpointNotFound
from process_gen.checkpoints.export import load_weights, save_weights
from process_gen.checkpoints.published import import_bagel, read_published
from process_gen.checkpoints.shipped import shipped_weights
from process_gen.data.qwen2 import Qwen2Tokenizer
from process_gen.distributed import lock
from process_gen.distributed.mesh import MeshError
from process_gen.experiment import cli
from process_gen.weights import origin
from process_gen.weights.restore import load_model
from tests.checkpoints.published.test_bagel import same
from tests.data.tiny_qwen2 import write_tiny_qwen2

ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "bagel_tiny"


def run(**flags) -> str:
    """The command without its process."""
    values = dict(
        to=None, vision=None, autoencoder=None, vit=True, which="ema", dtype=None, mesh="", largest=None,
        seed=0, base=None,
    )  # fmt: skip
    flags = {name: str(x) if isinstance(x, pathlib.Path) else x for name, x in flags.items()}
    return convert.run(types.SimpleNamespace(**values | flags))


def same_file(a: pathlib.Path, b: pathlib.Path) -> None:
    same(safetensors.numpy.load_file(a), safetensors.numpy.load_file(b))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The golden folder with files of a tokenizer."""
    folder = tmp_path_factory.mktemp("published") / "bagel"
    shutil.copytree(GOLDEN, folder)
    (folder / "tokenizer.json").write_text('{"model": {}}')
    (folder / "merges.txt").write_text("#version\n")
    return folder


@pytest.fixture(scope="module")
def workdir(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "bagel"
    run(source=source, target=folder, mesh="fsdp=2,tensor=2")
    return folder


def test_in_and_out_are_the_same_bits(source, workdir, tmp_path):
    assert "(ours) ->" in run(source=workdir, target=tmp_path / "out")
    for name in ("ema.safetensors", "ae.safetensors"):
        same_file(tmp_path / "out" / name, GOLDEN / name)
    for name in ("config.json", "llm_config.json", "vit_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads((GOLDEN / name).read_text())
    for folder in (workdir / "tokenizer", tmp_path / "out"):
        assert (folder / "merges.txt").read_text() == "#version\n"
        assert (folder / "tokenizer.json").is_file()
    with pytest.raises(CheckpointError, match="already holds ae.safetensors"):
        run(source=workdir, target=tmp_path / "out")
    with pytest.raises(CheckpointError, match="already holds step 0"):
        run(source=source, target=workdir)


def test_from_a_bucket_into_a_bucket_and_back_are_the_same_bits(source, tmp_path, gcs):
    for file in source.iterdir():
        gcs.write(f"published/{file.name}", file.read_bytes())
    run(source="gs://bucket/published", target="gs://bucket/converted")
    with pytest.raises(CheckpointError, match="already holds step 0"):
        run(source="gs://bucket/published", target="gs://bucket/converted")
    run(source="gs://bucket/converted", target="gs://bucket/out")
    with pytest.raises(CheckpointError, match="already holds ae.safetensors"):
        run(source="gs://bucket/converted", target="gs://bucket/out")
    for name in ("ema.safetensors", "ae.safetensors", "merges.txt"):
        (tmp_path / name).write_bytes(gcs.read(f"out/{name}"))
    same_file(tmp_path / "ema.safetensors", GOLDEN / "ema.safetensors")
    same_file(tmp_path / "ae.safetensors", GOLDEN / "ae.safetensors")
    assert (tmp_path / "merges.txt").read_text() == "#version\n"


def test_a_run_holds_the_sizes_and_where_they_came_from(source, workdir):
    saved = load.open_saved(workdir)
    published = read_published(source)
    assert origin.read_weights(workdir).model == published.model
    assert saved.metadata["published"]["from"] == str(source)
    params, _ = import_bagel(published)
    np.testing.assert_array_equal(saved.params()["head"]["kernel"], params["head"]["kernel"])


def test_one_part_of_a_model(workdir, tmp_path):
    run(source=workdir, target=tmp_path / "vae", to="diffusers")
    run(source=tmp_path / "vae", target=tmp_path / "ae", to="flux")
    same_file(tmp_path / "ae" / "ae.safetensors", GOLDEN / "ae.safetensors")
    run(source=workdir, target=tmp_path / "tower", to="siglip2", dtype="bfloat16")
    tower = safetensors.numpy.load_file(tmp_path / "tower" / "model.safetensors")
    assert tower["vision_model.embeddings.patch_embedding.weight"].shape == (48, 3, 14, 14)
    with pytest.raises(convert.ConvertError, match="is a vision tower and no model"):
        run(source=tmp_path / "tower", target=tmp_path / "x", to="ours")


def test_the_autoencoder_alone_becomes_a_run(tmp_path):
    run(source=GOLDEN / "ae.safetensors", target=tmp_path / "run")
    run(source=tmp_path / "run", target=tmp_path / "out", to="flux")
    same_file(tmp_path / "out" / "ae.safetensors", GOLDEN / "ae.safetensors")
    with pytest.raises(convert.ConvertError, match="holds no model"):
        run(source=tmp_path / "run", target=tmp_path / "out2", to="bagel")


def test_a_run_becomes_one_file_that_says_of_what_it_is(workdir, tmp_path):
    target = tmp_path / "mine.safetensors"
    run(source=shipped_weights(), to="package", target=target, dtype="bfloat16")
    (params, metadata), (found, told) = load_weights(shipped_weights()), load_weights(target)
    assert told == metadata | {"which": "ema"}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype("bfloat16"), b), params, found)
    metadata["config"]["optimizer"]["freeze"] = ["vit/*"]  # the run's own average has less
    save_weights(str(tmp_path / "tuned.safetensors"), params, metadata)
    run(source=tmp_path / "tuned.safetensors", to="package", target=tmp_path / "again.safetensors")
    assert load_model(str(tmp_path / "again.safetensors")).model.config == load_model(None).model.config
    with pytest.raises(convert.ConvertError, match="is there already"):
        run(source=shipped_weights(), to="package", target=target)
    for wrong, message in (
        (dict(source=shipped_weights(), target=tmp_path / "mine"), "name it NAME.safetensors"),
        (dict(source=workdir, target=tmp_path / "new.safetensors"), "a package holds none: --to=bagel"),
        (dict(source=GOLDEN, target=tmp_path / "new.safetensors"), "is no run, and a package is made of one"),
    ):
        with pytest.raises(convert.ConvertError, match=message):
            run(to="package", **wrong)
    assert {path.stem for path in tmp_path.iterdir()} == {"mine", "tuned", "again"}


def test_a_converted_model_knows_its_tokenizer(tmp_path):
    """Weights say which tokenizer their ids are of, and another one is refused wherever they are used."""
    published = tmp_path / "bagel"
    shutil.copytree(GOLDEN, published)
    write_tiny_qwen2(published)
    run(source=published, target=tmp_path / "run")
    tokenizer = Qwen2Tokenizer(published)
    config = cli.load_config(f"{ROOT}/configs/bagel_7b.py:debug")
    for place in (published, tmp_path / "run"):
        found = origin.read_weights(place)
        assert found.metadata["tokenizer_fingerprint"] == tokenizer.fingerprint
        with pytest.raises(CheckpointMismatch, match="was trained with the tokenizer .*this is another one"):
            load_model(str(place), config=config)
    with config.unlocked():
        config.model.vocab_size = 400
    assert Qwen2Tokenizer(tmp_path / "run" / "tokenizer").fingerprint == tokenizer.fingerprint
    with pytest.raises(CheckpointMismatch, match="for a model with vocab_size 320"):
        load_model(str(tmp_path / "run"), tokenizer=str(published), config=config)


def test_a_folder_without_configs_is_no_autoencoder(tmp_path):
    folder = tmp_path / "bagel"
    shutil.copytree(GOLDEN, folder)
    for name in ("llm_config.json", "vit_config.json", "config.json"):
        (folder / name).unlink()
        with pytest.raises(CheckpointNotFound, match=r"llm_config.json is missing: it belongs beside"):
            origin.read_weights(folder)
    (folder / "ema.safetensors").unlink()
    assert origin.read_weights(folder).kind == "autoencoder"


def test_without_a_vit(source, tmp_path):
    run(source=source, target=tmp_path / "run", vit=False)
    assert "vit" not in load.open_saved(tmp_path / "run").params()
    run(source=tmp_path / "run", target=tmp_path / "out", largest="200KB")
    assert (tmp_path / "out" / "ema.safetensors.index.json").is_file()
    with pytest.raises(CheckpointMismatch, match="holds no ViT"):
        read_published(tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (dict(source=None), convert.ConvertError, "--source=PATH is required"),
        (dict(target=None), convert.ConvertError, "--target=PATH is required"),
        (dict(source="nowhere"), CheckpointNotFound, "no such weights"),
        (dict(source=ROOT / "configs"), CheckpointNotFound, "holds neither a run"),
        (dict(source=ROOT / "setup.py"), CheckpointNotFound, "can run code"),
        (dict(to="bagle"), convert.ConvertError, "did you mean bagel"),
        (dict(dtype="int8"), convert.ConvertError, "must be one of float32"),
        (dict(mesh="fsdp"), MeshError, "--mesh=fsdp: 'fsdp' is no AXIS=SIZE"),
        (dict(mesh="rows=2"), MeshError, "axes: data, fsdp"),
        (dict(mesh="fsdp=0"), MeshError, "'fsdp=0' is no AXIS=SIZE"),
        (dict(mesh="fsdp=-1"), convert.ConvertError, "give every size"),
        (dict(largest="much"), convert.ConvertError, "such as 5GB"),
        (dict(which="params"), convert.ConvertError, "which is for a source of"),
        (dict(vision="y"), convert.ConvertError, "kind qwen2, this one is bagel"),
        (dict(seed=3), convert.ConvertError, "--seed is for a source"),
        (dict(largest="1GB"), convert.ConvertError, "this one is ours: leave it"),
        (dict(to="flux", mesh="fsdp=2"), convert.ConvertError, "--mesh is for"),
        (dict(to="adapters"), convert.ConvertError, "holds no adapters"),
    ],
)
def test_what_cannot_work_is_one_line(flags, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        run(**dict(source=GOLDEN, target="x") | flags)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("to", ["ours", "flux"])
def test_two_conversions_do_not_write_to_one_folder(source, tmp_path, to):
    half = tmp_path / "run" / "checkpoints" / "0.orbax-checkpoint-tmp-convert"
    half.mkdir(parents=True)
    with lock.hold(tmp_path / "run", "a conversion"), pytest.raises(lock.Occupied, match="a conversion is"):
        run(source=source, target=tmp_path / "run", to=to)
    assert half.is_dir()  # what the first one writes
    run(source=source, target=tmp_path / "run", to=to)
    assert not (tmp_path / "run" / lock.NAME).exists()


def test_sizes_of_files_and_meshes():
    assert convert.parse_bytes("1.5GB") == 1_500_000_000 and convert.parse_bytes("2 MiB") == 2 << 20
    assert convert.parse_bytes("77") == 77
    assert convert.mesh_sizes("") == {}
    assert convert.mesh_sizes("fsdp=8, tensor=2") == {"data": 1, "fsdp": 8, "tensor": 2, "context": 1}


@pytest.mark.slow
def test_the_command_ends_with_2_and_one_line(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"\x80\x02.")
    command = [sys.executable, "-m", "process_gen.convert", f"--source={tmp_path}", f"--target={tmp_path}/x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "can run code" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
