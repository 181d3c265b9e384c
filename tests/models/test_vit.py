"""The ViT and its connector, against numbers of the published implementation at toy size."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.models import vit
from process_gen.models.autoencoder import to_tokens
from process_gen.models.config import ModelConfig, VitConfig, model_config
from process_gen.trajectory.layout import Layout
from tests.models.tiny import CONFIG, VIT, layout

GOLDEN = dict(np.load(pathlib.Path(__file__).parent / "golden" / "vit.npz"))
"""A toy checkpoint's ViT under its published names, and what the published code makes of one picture."""
GRID = (2, 3)
TOY = ModelConfig(
    vocab_size=320,
    width=64,
    layers=3,
    mlp=112,
    heads=4,
    kv_heads=2,
    head_dim=16,
    latent_patch=7,
    vit=VitConfig(width=48, layers=2, mlp=80, heads=4, patch=14, max_side=6),
)


def dense(name: str) -> dict[str, np.ndarray]:
    return {"kernel": GOLDEN[f"{name}.weight"].T, "bias": GOLDEN[f"{name}.bias"]}


def norm(name: str) -> dict[str, np.ndarray]:
    return {"scale": GOLDEN[f"{name}.weight"], "bias": GOLDEN[f"{name}.bias"]}


def tower() -> dict:
    """The ViT's parameters out of the published names."""

    def layer(i):
        name = f"vit_model.vision_model.encoder.layers.{i}"
        attention = {p: dense(f"{name}.self_attn.{p}") for p in ("q_proj", "k_proj", "v_proj", "out_proj")}
        norms = {p: norm(f"{name}.{p}") for p in ("layer_norm1", "layer_norm2")}
        return attention | norms | {p: dense(f"{name}.mlp.{p}") for p in ("fc1", "fc2")}

    name = "vit_model.vision_model"
    return {
        "patch_embedding": dense(f"{name}.embeddings.patch_embedding"),
        "position_embedding": GOLDEN[f"{name}.embeddings.position_embedding.weight"],
        "layers": jax.tree.map(lambda *xs: np.stack(xs), *map(layer, range(TOY.vit.layers))),
        "post_layernorm": norm(f"{name}.post_layernorm"),
    }


def distance(a: jax.Array, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_the_tower_and_the_connector_give_the_published_numbers():
    with jax.default_matmul_precision("highest"):
        features = vit.Vit(TOY, GRID).apply({"params": tower()}, GOLDEN["vit_patches"][None])
        connector = {name: dense(f"connector.{name}") for name in ("fc1", "fc2")}
        tokens = vit.Connector(TOY, GRID).apply({"params": connector}, features)
    assert features.shape == (1, 6, 48) and tokens.shape == (1, 6, 64)
    assert distance(features[0], GOLDEN["vit_features"]) < 1e-5
    assert distance(tokens[0], GOLDEN["vit_connected"]) < 1e-5


def test_patches_of_an_image_in_context_are_cut_as_the_published_ones():
    picture = np.moveaxis(GOLDEN["vit_image"], 0, -1)
    places = Layout(image_size=(28, 42), latent_grid=(4, 6), latent_values=147, vit_grid=GRID)
    pixels = np.round((picture + 1) * 127.5).astype(np.uint8)
    patches = vit.views(TOY, places, pixels[None, None], to_tokens(TOY, pixels[None, None]))
    assert patches.shape == (1, 1, 6, 588)
    np.testing.assert_allclose(patches[0, 0], GOLDEN["vit_patches"], atol=1 / 255 + 1e-6)


def test_an_image_of_another_size_is_resized():
    places = layout(vit_grid=VIT)
    up = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None, None] * 32, (1, 8, 8, 3))
    patches = np.asarray(vit.views(CONFIG, places, up, to_tokens(CONFIG, up)))
    picture = patches.reshape(2, 3, 3, 3, 3).transpose(0, 2, 1, 3, 4).reshape(6, 9, 3)
    assert (np.diff(picture[:, 0, 0]) > 0).all(), "rows stay rows"
    np.testing.assert_allclose(picture, np.broadcast_to(picture[:, :1], picture.shape), atol=1e-6)
    checkered = (np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8)[None, :, :, None].repeat(3, -1)
    sharp = vit.views(CONFIG, places, checkered, 3 * to_tokens(CONFIG, checkered))
    assert float(jnp.abs(sharp).max()) <= 1.0


def test_the_vit_must_have_room_for_the_grid():
    with pytest.raises(ValueError, match=r"vit_grid \(5, 2\) exceeds model.vit.max_side 4"):
        vit.check(CONFIG, layout(vit_grid=(5, 2)))
    blind = dataclasses.replace(CONFIG, vit=None)
    vit.check(blind, layout())
    with pytest.raises(ValueError, match="the model has no ViT"):
        vit.check(blind, layout(vit_grid=VIT))


def test_single_fields_of_the_vit_can_be_replaced():
    changed = model_config("debug", vit={"layers": 3})
    assert changed.vit == dataclasses.replace(model_config("debug").vit, layers=3)
    assert model_config("debug", vit=None).vit is None
