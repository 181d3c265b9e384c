"""What is computed in float32 on purpose asks for it: the text that the compiler is given says so.

By default TPUs compute products of float32 in one pass of bfloat16, and NVIDIA GPUs in
TF32; a CPU does not, so that no number could tell.
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp

from process_gen.models import autoencoder, flux, vit
from process_gen.models.config import FluxConfig, model_config
from process_gen.trajectory.layout import Layout

CONFIG = model_config("bagel_7b", flux=FluxConfig(ch=32, ch_mult=(1, 2), res_blocks=1, z_channels=4))
LAYOUT = Layout(image_size=(8, 8), latent_grid=(2, 2), latent_values=16, vit_grid=(1, 1))
IMAGES = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)


def products(function, *args) -> list[str]:
    """What each product and convolution asks for: its precision, `HIGHEST` or `DEFAULT`."""
    text = jax.jit(function).lower(*args).as_text()
    lines = [x for x in text.splitlines() if "stablehlo.dot_general" in x or "stablehlo.convolution" in x]
    return [(re.findall(r"HIGHEST|HIGH|DEFAULT", line) or ["DEFAULT"])[0] for line in lines]


def test_the_autoencoder_asks_for_float32():
    module = flux.FluxAutoencoder(CONFIG.flux)
    params = jax.eval_shape(module.init, jax.random.key(0), IMAGES)
    latents = jax.ShapeDtypeStruct((1, 4, 4, 4), jnp.float32)
    encode = products(lambda p, x: module.apply(p, x, method="encode"), params, IMAGES)
    decode = products(lambda p, z: module.apply(p, z, method="decode"), params, latents)
    # Two convolutions and a shortcut per block, four matrices and two products of attention, and the ends.
    assert len(encode) >= 18 and len(decode) >= 22
    assert set(encode + decode) == {"HIGHEST"}


def test_so_do_images_on_their_way_to_tokens_and_back():
    params = jax.eval_shape(lambda: autoencoder.random_weights(CONFIG, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((1, 4, 16), jnp.float32)
    into = products(lambda p, x: autoencoder.to_tokens(CONFIG, x, p), params, IMAGES)
    back = products(lambda p, x: autoencoder.to_images(CONFIG, LAYOUT, x, p), params, tokens)
    assert set(into + back) == {"HIGHEST"}


def test_images_are_resized_for_the_vit_in_float32():
    found = products(lambda x: vit.patches_of(CONFIG, LAYOUT, x), IMAGES)
    assert found and set(found) == {"HIGHEST"}
