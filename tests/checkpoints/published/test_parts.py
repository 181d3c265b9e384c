"""Parts alone: Qwen2, SigLIP 2, the autoencoder under two naming schemes, and a model started from them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from process_gen.checkpoints import arrays
from process_gen.checkpoints.errors import CheckpointMismatch, CheckpointNotFound
from process_gen.checkpoints.published import bagel, flux, parts
from process_gen.checkpoints.published.flux import read_autoencoder
from process_gen.checkpoints.published.sources import TreeArrays, tree
from process_gen.models.config import FluxConfig, VitConfig
from tests.checkpoints.published import published_names
from tests.checkpoints.published.conftest import GOLDEN, SMALL, draw, edit, rewrite
from tests.checkpoints.published.test_bagel import same

LLM = SMALL["llm"] | dict(model_type="qwen2", hidden_act="silu", rope_theta=1e6, rms_norm_eps=1e-6)
VIT = SMALL["vit"] | dict(model_type="siglip_vision_model", hidden_act="gelu_pytorch_tanh")


def write(folder, weights, fields):
    folder.mkdir()
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def language_params(folder):
    """What a language model fills: both experts, the embedding and the head."""
    part = parts.read_qwen2(folder)
    return tree(part.pieces(parts.model_of(part, None, None)))


def tower_params(part):
    return tree(part.pieces(parts.tower_of(part)))


@pytest.fixture
def qwen2(tmp_path):
    return write(tmp_path / "qwen2", draw(published_names.qwen2(LLM)), LLM)


@pytest.fixture
def siglip2(tmp_path):
    shapes = published_names.vision_tower(VIT, "vision_model.", VIT["num_hidden_layers"], matrix=False)
    head = {"vision_model.head.probe": (1, 1, 16), "text_model.final_layer_norm.bias": (16,)}
    head |= {"logit_scale": (1,)}
    return write(tmp_path / "siglip2", draw(shapes | head), {"model_type": "siglip", "vision_config": VIT})


# ----------------------------------------------------------------------- Qwen2


def test_both_experts_start_from_the_language_model(qwen2):
    params, theirs = (language_params(qwen2), safetensors.numpy.load_file(qwen2 / "model.safetensors"))
    layers = params["backbone"]["layers"]
    same(layers["und"], layers["gen"])
    np.testing.assert_array_equal(
        layers["gen"]["v_proj"]["kernel"][1], theirs["model.layers.1.self_attn.v_proj.weight"].T
    )
    np.testing.assert_array_equal(params["head"]["kernel"], theirs["lm_head.weight"].T)
    np.testing.assert_array_equal(params["backbone"]["norms_gen"]["scale"], theirs["model.norm.weight"])
    assert "q_norm" not in layers["und"] and params.keys() == {"backbone", "embedding", "head"}


def test_a_tied_head_is_the_embedding(tmp_path):
    tied = LLM | dict(tie_word_embeddings=True)
    folder = write(tmp_path / "tied", draw(published_names.qwen2(tied)), tied)
    params = language_params(folder)
    np.testing.assert_array_equal(params["head"]["kernel"], params["embedding"].T)
    edit(folder, "config.json", tie_word_embeddings=False)
    with pytest.raises(CheckpointMismatch, match="missing: lm_head.weight"):
        language_params(folder)


def test_newer_configs_name_the_rotation_elsewhere(qwen2):
    fields = {key: value for key, value in LLM.items() if key != "rope_theta"}
    (qwen2 / "config.json").write_text(
        json.dumps(fields | {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}})
    )
    assert parts.read_qwen2(qwen2).sizes["rope_theta"] == 5e5
    edit(qwen2, "config.json", rope_parameters={"rope_theta": 5e5, "rope_type": "yarn"})
    with pytest.raises(CheckpointMismatch, match="rope_type is 'yarn'"):
        parts.read_qwen2(qwen2)


def test_another_language_model_is_refused(qwen2):
    edit(qwen2, "config.json", model_type="llama")
    with pytest.raises(CheckpointMismatch, match="model_type is 'llama'"):
        parts.read_qwen2(qwen2)
    with pytest.raises(CheckpointNotFound, match="no such folder"):
        parts.read_qwen2(qwen2 / "nowhere")


# -------------------------------------------------------------------- SigLIP 2


def test_the_tower_comes_without_its_last_layer(siglip2):
    part = parts.read_siglip2(siglip2)
    assert part.sizes == {"vit": VitConfig(width=16, layers=3, mlp=20, heads=2, patch=4, max_side=4)}
    params, theirs = tower_params(part), safetensors.numpy.load_file(siglip2 / "model.safetensors")
    assert params.keys() == {"vit"} and params["vit"]["layers"]["fc1"]["kernel"].shape == (3, 16, 20)
    convolution = theirs["vision_model.embeddings.patch_embedding.weight"]
    kernel = params["vit"]["patch_embedding"]["kernel"].reshape(4, 4, 3, 16)
    np.testing.assert_array_equal(kernel[1, 2, 0], convolution[:, 0, 1, 2])


def test_a_tower_goes_out_and_in_again(siglip2, tmp_path):
    part = parts.read_siglip2(siglip2)
    params = tower_params(part)
    parts.export_siglip2(params, part.sizes["vit"], tmp_path / "out")
    again = parts.read_siglip2(tmp_path / "out")
    assert again.sizes == part.sizes
    same(tower_params(again), params)
    with pytest.raises(CheckpointMismatch, match="have no ViT"):
        parts.export_siglip2({"embedding": np.ones(2)}, part.sizes["vit"], tmp_path / "none")


def test_a_tower_with_a_layer_missing(siglip2):
    rewrite(
        siglip2, lambda w: {n: x for n, x in w.items() if ".layers.3." not in n}, name="model.safetensors"
    )
    with pytest.raises(CheckpointMismatch, match="should hold 4 ViT layers; they hold 3"):
        parts.read_siglip2(siglip2)


# --------------------------------------------------------------- a model's start


def test_a_model_started_from_parts(qwen2, siglip2, tmp_path):
    coder, _ = read_autoencoder(GOLDEN / "ae.safetensors")
    language, vision = parts.read_qwen2(qwen2), parts.read_siglip2(siglip2)
    model = parts.model_of(language, vision, coder)
    source = parts.start(model, language, vision, seed=1)
    assert model.flux == FluxConfig(ch=32, ch_mult=(1, 1, 1, 1), res_blocks=1, z_channels=4)
    assert dict(source.spec) == bagel.model_shapes(model)
    read = source.read
    assert (read("backbone/layers/und/q_norm/scale") == 1).all() and not read("latent_out/kernel").any()
    assert read("connector/fc1/kernel").std() > 0.1
    parts.export_qwen2(source, model, tmp_path / "out")
    theirs = safetensors.numpy.load_file(qwen2 / "model.safetensors")
    same(safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors"), theirs)
    assert parts.read_qwen2(tmp_path / "out").sizes == language.sizes
    blind = parts.model_of(language, None, None)
    assert blind.vit is None and blind.flux == FluxConfig()


def test_a_model_started_from_half_precision_is_in_float32(tmp_path):
    weights = draw(published_names.qwen2(LLM), dtype=jnp.bfloat16)
    language = parts.read_qwen2(write(tmp_path / "half", weights, LLM))
    source = parts.start(parts.model_of(language, None, None), language, None)
    assert {source.read(name).dtype for name in source.spec} == {np.dtype(np.float32)}


def test_a_trained_norm_does_not_fit_into_a_qwen2(qwen2, tmp_path):
    language = parts.read_qwen2(qwen2)
    model, name = parts.model_of(language, None, None), "backbone/layers/und/q_norm/scale"
    params = arrays.flatten(tree(parts.start(model, language, None)))
    params[name] = params[name] + 0.5
    with pytest.raises(CheckpointMismatch, match="q_norm/scale is trained"):
        parts.export_qwen2(arrays.unflatten(params), model, tmp_path / "out")


# ----------------------------------------------------------------- autoencoder


@pytest.mark.parametrize("naming", ["flux", "diffusers"])
def test_an_autoencoder_goes_out_and_in_again(fake, tmp_path, naming):
    fields = SMALL["config"]["vae"]
    config, source = read_autoencoder(fake, fields)
    flux.export_autoencoder(source, config, tmp_path / "out", naming)
    assert (tmp_path / "out" / f"{flux.STEMS[naming]}.safetensors").is_file()
    again, found = read_autoencoder(tmp_path / "out", fields)
    assert again == config
    same(tree(found), tree(source))


def test_diffusers_names_and_order(fake, tmp_path):
    config, source = read_autoencoder(fake, SMALL["config"]["vae"])
    flux.export_autoencoder(tree(source), config, tmp_path / "out", "diffusers")
    theirs = safetensors.numpy.load_file(fake / "ae.safetensors")
    found = safetensors.numpy.load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    assert len(found) == len(theirs)
    for name, other in (
        ("decoder.up_blocks.0.resnets.2.conv1.weight", "decoder.up.2.block.2.conv1.weight"),
        ("decoder.up_blocks.2.resnets.0.conv_shortcut.weight", "decoder.up.0.block.0.nin_shortcut.weight"),
        ("decoder.up_blocks.1.upsamplers.0.conv.bias", "decoder.up.1.upsample.conv.bias"),
        ("encoder.down_blocks.0.downsamplers.0.conv.weight", "encoder.down.0.downsample.conv.weight"),
        ("encoder.mid_block.resnets.1.norm2.weight", "encoder.mid.block_2.norm2.weight"),
        ("decoder.conv_norm_out.bias", "decoder.norm_out.bias"),
    ):
        np.testing.assert_array_equal(found[name], theirs[other])
    query = found["encoder.mid_block.attentions.0.to_out.0.weight"]
    np.testing.assert_array_equal(query, theirs["encoder.mid.attn_1.proj_out.weight"][:, :, 0, 0])
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["block_out_channels"] == [32, 64, 64] and fields["scaling_factor"] == 0.5
    edit(tmp_path / "out", "config.json", latent_channels=16)
    with pytest.raises(CheckpointMismatch, match="z_channels is 16, the weights have 6"):
        read_autoencoder(tmp_path / "out")


def test_an_autoencoder_with_more_than_flux_has(fake):
    rewrite(fake, lambda w: w | {"quant_conv.weight": np.ones((12, 12, 1, 1))}, name="ae.safetensors")
    with pytest.raises(CheckpointMismatch, match="unknown: quant_conv.weight"):
        read_autoencoder(fake, SMALL["config"]["vae"])
    rewrite(fake, lambda w: {"a": np.ones(3)}, name="ae.safetensors")
    with pytest.raises(CheckpointMismatch, match="no FLUX autoencoder"):
        read_autoencoder(fake)


def test_a_tree_on_devices_is_a_source_too():
    source = TreeArrays({"a": {"b": jnp.arange(6.0).reshape(2, 3)}})
    assert source.spec == {"a/b": (2, 3)}
    np.testing.assert_array_equal(source.read("a/b", (slice(1, 2),)), [[3, 4, 5]])
    assert isinstance(source.read("a/b"), np.ndarray) and jax.devices()
