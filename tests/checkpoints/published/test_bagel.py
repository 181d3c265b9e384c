"""A published BAGEL in and out: names, shapes, numbers and bits, and what is refused."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from process_gen.checkpoints import arrays
from process_gen.checkpoints.errors import (
    CheckpointCorrupt,
    CheckpointError,
    CheckpointMismatch,
    CheckpointNotFound,
)
from process_gen.checkpoints.published import bagel, export_bagel, import_bagel, read_published
from process_gen.models.config import FluxConfig, ModelConfig, VitConfig
from tests.checkpoints.published import published_names
from tests.checkpoints.published.conftest import GOLDEN, edit, rewrite, shard, write_fake

LAYERS = "language_model.model.layers."


def same(a, b) -> None:
    """Trees of the same bits."""
    a, b = arrays.flatten(a), arrays.flatten(b)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        assert np.asarray(a[name]).tobytes() == np.asarray(b[name]).tobytes(), name


def test_the_names_written_down_for_these_tests_are_the_published_ones():
    fields = {
        name: json.loads((GOLDEN / f"{name}.json").read_text())
        for name in ("llm_config", "vit_config", "config")
    }
    vae = fields["config"]["vae"]
    found = safetensors.numpy.load_file(GOLDEN / "ema.safetensors")
    assert {n: x.shape for n, x in found.items()} == published_names.bagel(
        *fields.values(), vae["z_channels"]
    )
    found = safetensors.numpy.load_file(GOLDEN / "ae.safetensors")
    assert {n: x.shape for n, x in found.items()} == published_names.flux(vae)


def test_sizes_come_from_the_configs():
    published = read_published(GOLDEN)
    assert published.model == ModelConfig(
        vocab_size=320,
        width=64,
        layers=3,
        mlp=112,
        heads=4,
        kv_heads=2,
        head_dim=16,
        max_latent_side=8,
        autoencoder="flux",
        flux=FluxConfig(ch=32, ch_mult=(1, 1, 1, 1), res_blocks=1, z_channels=4),
        vit=VitConfig(width=48, layers=2, mlp=80, heads=4, patch=14, max_side=6),
    )
    assert published.timestep_shift == 1.0


def test_sizes_of_another_model(fake):
    published = read_published(fake)
    flux = FluxConfig(ch=32, ch_mult=(1, 2, 2), res_blocks=2, z_channels=6, scale=0.5, shift=-0.25)
    assert published.model.flux == flux and flux.factor == 4
    assert published.model.vit == VitConfig(width=16, layers=3, mlp=20, heads=2, patch=4, max_side=4)
    assert (published.model.head_dim, published.model.kv_heads, published.model.latent_patch) == (8, 1, 1)
    assert published.timestep_shift == 2.0


def test_every_number_lands_where_the_model_looks_for_it():
    params, autoencoder = import_bagel(read_published(GOLDEN))
    theirs = safetensors.numpy.load_file(GOLDEN / "ema.safetensors")
    und, gen = (params["backbone"]["layers"][expert] for expert in ("und", "gen"))
    layer, tower = f"{LAYERS}2.", "vit_model.vision_model.encoder.layers.1."
    for ours, name in (
        (gen["down_proj"]["kernel"][2].T, f"{layer}mlp_moe_gen.down_proj.weight"),
        (und["k_proj"]["bias"][2], f"{layer}self_attn.k_proj.bias"),
        (gen["q_norm"]["scale"][2], f"{layer}self_attn.q_norm_moe_gen.weight"),
        (params["embedding"], "language_model.model.embed_tokens.weight"),
        (params["time_out"]["kernel"].T, "time_embedder.mlp.2.weight"),
        (params["vit"]["layers"]["fc2"]["kernel"][1].T, f"{tower}mlp.fc2.weight"),
    ):
        np.testing.assert_array_equal(ours, theirs[name])
    conv = safetensors.numpy.load_file(GOLDEN / "ae.safetensors")["decoder.up.2.upsample.conv.weight"]
    assert autoencoder["decoder"]["up_2"]["upsample"]["kernel"][1, 2, 3, 4] == conv[4, 3, 1, 2]


@pytest.mark.parametrize("with_vit", [True, False])
def test_the_parameters_are_those_of_the_model(with_vit):
    params, _ = import_bagel(read_published(GOLDEN, vit=with_vit))
    wanted = nn.meta.unbox(bagel.model_spec(read_published(GOLDEN).model, with_vit))
    found, wanted = (jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree) for tree in (params, wanted))
    assert found == wanted
    assert ("vit" in params) == ("connector" in params) == with_vit


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_out_and_in_again_are_the_same_bits(tmp_path, dtype):
    folder = write_fake(tmp_path / "fake", dtype=jnp.dtype(dtype))
    published = read_published(folder)
    params, autoencoder = import_bagel(published, dtype=None)
    export_bagel(params, autoencoder, published.model, tmp_path / "out")
    for name in ("ema", "ae"):
        before, after = (
            safetensors.numpy.load_file(f / f"{name}.safetensors") for f in (folder, tmp_path / "out")
        )
        same(before, after)
    again = read_published(tmp_path / "out")
    assert again.model == published.model
    same(import_bagel(again, dtype=None), (params, autoencoder))
    with pytest.raises(CheckpointError, match="already holds ae.safetensors"):
        export_bagel(params, autoencoder, published.model, tmp_path / "out")


def test_shards_are_written_and_read(fake, tmp_path):
    published = read_published(fake)
    params, autoencoder = import_bagel(published)
    export_bagel(params, autoencoder, published.model, tmp_path / "out", largest=20_000)
    files = sorted(p.name for p in (tmp_path / "out").glob("ema*"))
    assert len(files) > 4 and files[-1] == "ema.safetensors.index.json"
    assert {"ae.safetensors", "config.json"} <= {p.name for p in (tmp_path / "out").iterdir()}
    same(import_bagel(read_published(tmp_path / "out")), (params, autoencoder))


def test_weights_in_half_precision_stay_what_they_are(tmp_path):
    published = read_published(write_fake(tmp_path / "fake", dtype=jnp.bfloat16))
    params, autoencoder = import_bagel(published, dtype=None)
    assert {x.dtype for x in jax.tree.leaves((params, autoencoder))} == {jnp.dtype(jnp.bfloat16)}
    wide, _ = import_bagel(published)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype(np.float32), b), params, wide)


def test_progress_counts_every_byte(fake, tmp_path):
    counts, published = [], read_published(fake)
    export_bagel(*import_bagel(published), published.model, tmp_path / "out", progress=counts.append)
    files = [safetensors.numpy.load_file(tmp_path / "out" / f"{name}.safetensors") for name in ("ema", "ae")]
    assert sum(counts) == sum(x.nbytes for file in files for x in file.values())


# ------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        (("vit_", "connector"), r"vit_model\.\*, connector\.\*, vit_pos_embed\.\* are missing"),
        (("vit_model", "connector"), r"vit_model\.\*, connector\.\* are missing"),
        (("vit_model",), r"vit_model\.\* are missing"),
    ],
)
def test_a_checkpoint_without_a_vit(golden, parts, named):
    rewrite(golden, lambda w: {n: x for n, x in w.items() if not n.startswith(parts)})
    with pytest.raises(CheckpointMismatch, match=f"holds no ViT: {named}.*--novit"):
        read_published(golden)
    published = read_published(golden, vit=False)
    assert published.model.vit is None
    assert "vit" not in import_bagel(published)[0]


def test_a_vit_that_is_there_can_be_left_out(golden, tmp_path):
    published = read_published(golden, vit=False)
    params, autoencoder = import_bagel(published)
    assert "vit" not in params and "connector" not in params
    export_bagel(params, autoencoder, published.model, tmp_path / "blind")
    with pytest.raises(CheckpointMismatch, match="holds no ViT"):
        read_published(tmp_path / "blind")
    same(import_bagel(read_published(tmp_path / "blind", vit=False))[0], params)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (f"{LAYERS}1.mlp_moe_gen.up_proj.weight", None, f"missing: {LAYERS}1.mlp_moe"),
        ("connector.fc2.bias", None, "missing: connector.fc2.bias"),
        ("vit_model.vision_model.encoder.layers.0.mlp.fc1.bias", None, "missing: vit_model"),
        ("latent_pos_embed.pos_embed", None, "missing: latent_pos_embed.pos_embed"),
        (f"{LAYERS}3.mlp.up_proj.weight", (112, 64), f"unknown: {LAYERS}3"),
        ("llm2vae.bias", (17,), r"llm2vae.bias \(17,\) instead of \(16,\)"),
        ("latent_pos_embed.pos_embed", (64, 64), "latent_pos_embed.pos_embed is not the fixed table"),
    ],
)
def test_tensors_that_are_missing_unknown_or_others(golden, name, shape, message):
    ones = {} if shape is None else {name: np.ones(shape, np.float32)}
    rewrite(golden, lambda w: {n: x for n, x in w.items() if n != name} | ones)
    with pytest.raises(CheckpointMismatch, match=message):
        import_bagel(read_published(golden))


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("config.json", {"max_latent_size": 32}, "latent_size is 32.*64 rows, 8 x 8.*max_latent_size = 8"),
        ("config.json", {"latent_patch_size": 1}, "latent_patch_size is 1"),
        ("config.json", {"vit_max_num_patch_per_side": 7}, "vit_max_num_patch_per_side is 7"),
        ("config.json", {"connector_act": "relu"}, "connector_act is 'relu'"),
        ("config.json", {"interpolate_pos": True}, "interpolate_pos is True"),
        ("config.json", {"timestep_shift": "x"}, "timestep_shift must be a positive float"),
        ("config.json", {"vae": {"ch_mult": [1, 2, 4, 4]}}, "the autoencoder's ch_mult is"),
        ("config.json", {"vae": {"scale_factor": 0}}, "scale_factor must be a positive"),
        ("llm_config.json", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("llm_config.json", {"layer_module": "Qwen2MoEDecoderLayer"}, "layer_module is"),
        ("llm_config.json", {"num_attention_heads": 0}, "num_attention_heads must be a positive int"),
        ("llm_config.json", {"num_attention_heads": 2**40}, "leaves no pair of model.head_dim"),
        (
            "vit_config.json",
            {"num_attention_heads": 2**40},
            "vit_config.json: model.vit.width .* a multiple of",
        ),
        ("llm_config.json", {"num_hidden_layers": 4}, "missing: language_model.model.layers.3"),
        ("llm_config.json", {"vocab_size": 321}, "embed_tokens.weight .* instead of"),
        ("vit_config.json", {"num_hidden_layers": 5}, "should hold 4 ViT layers.*they hold 2"),
        ("vit_config.json", {"num_hidden_layers": 2}, "should hold 1 ViT layers"),
        ("vit_config.json", {"patch_size": 16}, "patch_size is 16"),
        ("vit_config.json", {"image_size": 980}, "image_size is 980"),
    ],
)
def test_configs_that_contradict_the_weights_or_ask_for_something_else(golden, file, fields, message):
    edit(golden, file, **fields)
    with pytest.raises(CheckpointMismatch, match=message):
        published = read_published(golden)
        assert "max_latent_size" not in fields, "refused before a weight is read"
        import_bagel(published)


def test_files_that_are_missing_or_broken(golden, tmp_path):
    with pytest.raises(CheckpointNotFound, match="no such folder"):
        read_published(tmp_path / "nowhere")
    (golden / "vit_config.json").write_text("{")
    with pytest.raises(CheckpointCorrupt, match="vit_config.json is no JSON object"):
        read_published(golden)
    (golden / "vit_config.json").unlink()
    with pytest.raises(CheckpointNotFound, match="vit_config.json is missing"):
        read_published(golden)
    read_published(golden, vit=False)
    (golden / "ae.safetensors").rename(golden / "elsewhere.safetensors")
    with pytest.raises(CheckpointNotFound, match="holds no ae.safetensors.*belongs beside the model"):
        read_published(golden, vit=False)
    read_published(golden, vit=False, autoencoder=golden / "elsewhere.safetensors")
    (golden / "ema.safetensors").rename(golden / "ema.pt")
    with pytest.raises(CheckpointNotFound, match="pickles"):
        read_published(golden, vit=False)


def test_a_shard_is_missing(golden):
    shard(golden)
    (golden / "ema-00001-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointCorrupt, match="lacks 1 of 3 shards"):
        read_published(golden)


def test_a_model_that_the_published_program_does_not_know_is_not_exported(tmp_path):
    published = read_published(GOLDEN)
    params, autoencoder = import_bagel(published)
    for field, value in (("image_rope", 2), ("prediction", "clean"), ("time_scale", 100.0)):
        odd = dataclasses.replace(published.model, **{field: value})
        with pytest.raises(CheckpointMismatch, match=f"model.{field} is"):
            export_bagel(params, autoencoder, odd, tmp_path / "out")
    wide = dataclasses.replace(published.model, mlp=113)
    with pytest.raises(
        CheckpointMismatch, match="do not fit its sizes; of another shape: backbone/layers/gen/down_proj"
    ):
        export_bagel(params, autoencoder, wide, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------- full size


def test_every_tensor_of_the_full_size_model_has_its_place():
    """The published 7B by names and shapes alone: nothing is unmatched on either side."""
    from process_gen.checkpoints.published import configs, flux, rules, tables
    from process_gen.models.config import model_config

    p = published_names
    found = p.bagel(p.LLM_7B, p.VIT_7B, p.CONFIG_7B, p.FLUX_1["z_channels"])
    sizes = configs.language_model(p.LLM_7B, biases=True)
    vit = configs.vision_tower(p.VIT_7B, found, "vit_model.vision_model.", left_out=1)
    coder = flux.config_of(p.flux(p.FLUX_1), p.FLUX_1)
    row = model_config("bagel_7b")
    assert dataclasses.replace(row, **sizes, vit=vit, flux=coder) == row
    moves = bagel.bagel_moves(row)
    rules.check(moves, found, "BAGEL-7B-MoT", list(tables.BAGEL_TABLES))
    assert {move.theirs for move in moves} | set(tables.BAGEL_TABLES) == set(found)
    count = sum(int(np.prod(shape)) for shape in found.values())
    assert 14.6e9 < count < 14.8e9
    ours = flux.autoencoder_shapes(row.flux)
    published = p.flux(p.FLUX_1)
    rules.check(flux.moves_of(row.flux), published, "ae")
    assert sum(int(np.prod(s)) for s in ours.values()) == sum(int(np.prod(s)) for s in published.values())
    assert len(flux.moves_of(row.flux, "diffusers")) == len(published) == 244
