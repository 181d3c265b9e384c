"""Images encoded ahead of time give the latents that the training would make of them itself."""

from __future__ import annotations

import json
import pathlib
import shutil

import jax
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy

from process_gen.checkpoints.errors import CheckpointNotFound
from process_gen.data.buckets import split_into_buckets
from process_gen.data.errors import BadTrajectory
from process_gen.data.latents import INFO, LatentsSource, read_info
from process_gen.data.loader import make_loader
from process_gen.data.preparation import NotPrepared
from process_gen.data.sources import open_source, with_latents
from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.distributed import lock
from process_gen.experiment import builders, cli
from process_gen.models.autoencoder import to_tokens
from process_gen.prepare import prepare
from process_gen.training.program import build_recipe
from process_gen.training.step import TrainState, make_train_step
from process_gen.trajectory.batch import Batch
from process_gen.weights import ahead
from process_gen.weights.origin import read_weights
from process_gen.weights.start import load_onto_devices

ROOT = pathlib.Path(__file__).parents[2]
PUBLISHED = ROOT / "tests" / "golden" / "bagel_tiny"
FLUX = dict(ch=32, ch_mult=(1, 1, 1, 1), res_blocks=1, z_channels=4)


@pytest.fixture
def config(tmp_path):
    """A folder of three trajectories, one with an input image, for the autoencoder of the tiny BAGEL."""
    rng, lines = np.random.default_rng(0), []
    for number in range(3):
        names = [f"{number}-{name}.png" for name in ("in", "a", "b", "c")]
        for name in names:
            PIL.Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / name)
        turns = [{"image": names[1]}, {"image": names[2], "inspect": "a"}, {"refine": "a", "image": names[3]}]
        given = {"image": names[0], "instruction": "a star"} if number == 1 else {}
        lines.append(json.dumps({"prompt": "a circle", "turns": turns, **given}))
    (tmp_path / "trajectories.jsonl").write_text("\n".join(lines))
    config = cli.load_config(str(ROOT / "configs" / "scenes.py:debug"))
    with config.unlocked():
        config.model = dict(size="bagel_7b", flux=FLUX)
        config.layout.update(dict(image_size=(32, 32), prompt_image=True, instruction=8))
        config.data.update(dict(source="folder", path=str(tmp_path), latents=str(tmp_path / "latents")))
        config.train.init = str(PUBLISHED)
    return config


def batches(config, ahead_of_time):
    """One epoch, in the order of the folder."""
    layout = builders.build_layout(config)
    source = open_source(config.data, layout.image_size)
    source = with_latents(source, config.data, layout) if ahead_of_time else source
    return list(make_loader(source, scenes_tokenizer(), layout, 1, epochs=1, shuffle=False))


def test_latents_ahead_of_time_are_those_on_the_fly(config, capsys):
    prepare(config)
    assert "latents of 3 trajectories" in capsys.readouterr().out
    model = builders.build_model_config(config)
    params = ahead.autoencoder_params(config)
    encode = jax.jit(lambda images: to_tokens(model, images, params))
    plain, rich = batches(config, False), batches(config, True)
    seen = 0
    for without, with_them in zip(plain, rich, strict=True):
        for name, value in without.items():
            np.testing.assert_array_equal(value, with_them[name])
        for images in ("image", "prompt_image"):
            latents = with_them[f"{images.removesuffix('_image')}_latents"]
            there = without[images].any((-1, -2, -3))
            wanted = np.asarray(encode(without[images]))[there]
            np.testing.assert_allclose(latents[there], wanted, rtol=2**-10, atol=1e-5)
            assert not latents[~there].any() and (np.abs(wanted).max((1, 2)) > 0.01).all()
            seen += there.sum()
    assert seen == 3 * 3 + 1
    file = pathlib.Path(config.data.latents) / "latents-00000.array_record"
    written = file.stat().st_mtime_ns
    prepare(config)
    ahead.check_autoencoder(config, {builders.build_layout(config): _opened(config)[0]})
    assert written == file.stat().st_mtime_ns


def test_images_need_not_be_decoded_where_nothing_reads_their_pixels(config, monkeypatch):
    prepare(config)
    source, layout = _opened(config)
    whole = with_latents(source, config.data, layout)
    blank = with_latents(source, config.data, layout, pixels=False)

    def no_image(*_):
        raise AssertionError("an image was decoded")

    wanted = [whole[i] for i in range(3)]
    with monkeypatch.context() as patched:
        patched.setattr("process_gen.data.images.read_image", no_image)
        found = [blank[i] for i in range(3)]
        loader = make_loader(blank, scenes_tokenizer(), layout, 1, epochs=1, shuffle=False)
        batches_found = list(loader)
    for one, other in zip(found, wanted, strict=True):
        for name in ("image", "prompt"):
            np.testing.assert_array_equal(one.latents[name], other.latents[name])
        assert not one.image.any() and one.prompt == other.prompt
    assert not any(batch["image"].any() for batch in batches_found)
    assert builders.build_losses(config).reads_pixels is False
    with config.unlocked():
        config.losses.consistency = dict(loss="spatial_consistency", stage="sketch", weight=1.0)
    assert builders.build_losses(config).reads_pixels is True
    (changed,) = [p for p in pathlib.Path(config.data.path).glob("1-b.png")]
    PIL.Image.new("RGB", (32, 32)).save(changed)
    with pytest.raises(BadTrajectory, match="are not those that the latents 1"):
        blank[1]


def test_every_image_shape_has_latents_of_its_own(config, capsys):
    for name in ("0-c.png", "2-c.png"):  # what a trajectory ends with
        PIL.Image.new("RGB", (90, 30)).save(pathlib.Path(config.data.path) / name)
    config.data.buckets = ((16, 48), (48, 16))
    prepare(config)
    out = capsys.readouterr().out
    table = [line.split() for line in out.splitlines()]
    start = table.index(["images", "of", "trajectories"]) + 2
    rows = [["32", "x", "32", "1"], ["16", "x", "48", "2"], ["48", "x", "16", "0"]]
    assert rows == table[start : start + 3]
    assert out.count("useful ") == 2 and "packing, images of 16 x 48" in out
    layouts = builders.build_layouts(config)
    buckets = split_into_buckets(open_source(config.data, (32, 32)), list(layouts))
    assert list(buckets) == [(32, 32), (16, 48)]
    for size, count in (((32, 32), 1), ((16, 48), 2)):
        source = with_latents(buckets[size], config.data, layouts[size])
        assert len(source) == count and source.folder.name == f"{size[0]}x{size[1]}"
        loader = make_loader(source, scenes_tokenizer(), layouts[size], 1, shuffle=False, prefetch=0)
        batch = next(iter(loader))
        assert batch["image_latents"].shape[-2] == layouts[size].latents
    ahead.check_autoencoder(config, {layouts[size]: bucket for size, bucket in buckets.items()})


@pytest.mark.long  # a train step is compiled twice
def test_training_on_latents_ahead_of_time_has_the_losses_of_training_on_the_fly(config):
    """Latents are the encoder's means in both, so that they differ by half precision alone."""
    tiny = cli.load_config(str(ROOT / "configs" / "bagel_7b.py:debug"))
    with tiny.unlocked():
        tiny.data.update(config.data.to_dict())
        tiny.train.init = config.train.init
        tiny.flow.sample_latents = False
    prepare(tiny)
    model = builders.build_model(tiny, scenes_tokenizer())
    recipe = build_recipe(tiny, model)
    step = jax.jit(make_train_step(recipe), compiler_options={"xla_backend_optimization_level": 0})
    params, autoencoder = load_onto_devices(read_weights(tiny.train.init), model)
    moments = recipe.optimizer.init(params)
    first = TrainState(np.int32(0), params, params, moments, jax.random.key(0), autoencoder)
    curves = []
    for ahead_of_time in (False, True):
        state, curve, (rows, *_) = first, [], batches(tiny, ahead_of_time)
        for _ in range(4):
            state, metrics = step(state, Batch(**rows))
            curve.append([float(value) for name, value in metrics.items() if name.startswith("loss")])
        curves.append(curve)
    assert (rows["image_latents"] != 0).any() and curves[0][0] != curves[0][-1]
    np.testing.assert_allclose(curves[0], curves[1], rtol=2e-3)


def test_a_broken_image_keeps_its_place_or_stops_the_encoding(config):
    folder = pathlib.Path(config.data.path)
    (folder / "1-b.png").write_bytes((folder / "1-b.png").read_bytes()[:100])
    (source, layout), params = _opened(config), ahead.autoencoder_params(config)
    with pytest.raises(BadTrajectory, match=r"line 2: turns\[1\].image is no readable .*'1-b.png'"):
        ahead.encode_latents(config, config.data.latents, source, layout, params)
    config.data.on_error = "skip"
    assert ahead.encode_latents(config, config.data.latents, source, layout, params).trajectories == 3
    found = LatentsSource(source, config.data.latents, layout)
    with pytest.raises(BadTrajectory, match="'1-b.png'"):
        found[1]
    assert found[2].latents["image"].shape == (3, layout.latents, layout.latent_values)


def test_what_cannot_be_encoded_is_refused(config, tmp_path):
    with config.unlocked():
        config.train.init = ""
    with pytest.raises(builders.ConfigError, match="needs the weights of the autoencoder: set"):
        ahead.autoencoder_params(config)
    config.train.init = str(tmp_path / "nowhere")
    with pytest.raises(CheckpointNotFound, match="nowhere"):
        ahead.autoencoder_params(config)
    config.train.init = str(PUBLISHED)
    config.model.flux.z_channels = 8
    with pytest.raises(builders.ConfigError, match="the autoencoder in .*z_channels=4.* the config has"):
        ahead.autoencoder_params(config)
    with config.unlocked():
        config.model = dict(size="debug")
    with pytest.raises(builders.ConfigError, match="latents are the pixels themselves: leave it empty"):
        ahead.autoencoder_params(config)


def test_a_folder_of_other_latents_is_kept(config):
    prepare(config)
    before = read_info(config.data.latents)
    assert before.trajectories == 3
    config.layout.image_size = (32, 48)
    with pytest.raises(builders.ConfigError, match=r"holds other latents \(image_size was .*another"):
        prepare(config)
    assert read_info(config.data.latents) == before


def test_latents_of_an_earlier_version_are_made_anew(config):
    prepare(config)
    path = pathlib.Path(config.data.latents) / INFO
    written = path.read_text()
    path.write_text(json.dumps(json.loads(written) | {"format": 1}))
    path.with_name("latents-00000.array_record").rename(path.with_name("latents.array_record"))
    with pytest.raises(NotPrepared, match="it has format 1, this version reads 3.*process_gen.prepare"):
        with_latents(*_opened(config)[:1], config.data, builders.build_layout(config))
    prepare(config)
    assert path.read_text() == written


def test_latents_of_another_autoencoder_are_refused(config, tmp_path):
    prepare(config)
    other = tmp_path / "other"
    shutil.copytree(PUBLISHED, other)
    tensors = safetensors.numpy.load_file(other / "ae.safetensors")
    tensors["encoder.conv_in.bias"] = tensors["encoder.conv_in.bias"] + 1
    safetensors.numpy.save_file(tensors, other / "ae.safetensors")
    config.train.init = str(other)
    with pytest.raises(builders.ConfigError, match="were made by the autoencoder .*, .*other holds"):
        ahead.check_autoencoder(config, {builders.build_layout(config): _opened(config)[0]})


def _opened(config):
    layout = builders.build_layout(config)
    return open_source(config.data, layout.image_size), layout


def test_one_process_writes_a_folder_of_latents_at_a_time(config, monkeypatch):
    (source, layout), params = _opened(config), ahead.autoencoder_params(config)
    held = []

    def encode(config, folder, info, *_):
        held.append((pathlib.Path(folder) / lock.NAME).exists())

    monkeypatch.setattr(ahead, "_encode", encode)
    ahead.encode_latents(config, config.data.latents, source, layout, params)
    assert held == [True]
