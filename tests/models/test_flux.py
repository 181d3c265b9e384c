"""The FLUX autoencoder against the published numbers, and its shapes at other sizes."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.checkpoints.published.flux import read_autoencoder
from process_gen.checkpoints.published.sources import tree
from process_gen.models import autoencoder
from process_gen.models.autoencoder import (
    geometry,
    latent_shape,
    slots_to_tokens,
    to_floats,
    to_tokens,
)
from process_gen.models.config import FluxConfig, UnrollOptions, model_config
from process_gen.models.flux import FluxAutoencoder
from process_gen.models.inputs import make_inputs
from tests.models import tiny

FOLDER = pathlib.Path(__file__).parents[1] / "golden" / "bagel_tiny"
GOLDEN = {name: x for name, x in np.load(FOLDER / "golden.npz").items() if name.startswith("ae_")}


@pytest.fixture(scope="module")
def published():
    fields = {"scale_factor": 0.3611, "shift_factor": 0.1159}
    config, source = read_autoencoder(FOLDER / "ae.safetensors", fields)
    return FluxAutoencoder(config), {"params": tree(source)}


def test_values_are_as_both_encoders_read_them():
    floats = to_floats(np.array([[[[0, 255, 51]]]], np.uint8))
    np.testing.assert_allclose(floats, [[[[-1, 1, -0.6]]]], atol=1e-6)
    assert floats.dtype == np.float32


def last(x: np.ndarray) -> np.ndarray:
    """[C, h, w] to [1, h, w, C]."""
    return np.moveaxis(x, 0, -1)[None]


def distance(a: jax.Array, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_it_encodes_and_decodes_to_the_published_numbers(published):
    module, variables = published
    with jax.default_matmul_precision("highest"):
        moments = jax.jit(module.apply, static_argnames="method")(
            variables, last(GOLDEN["ae_image"]), method="moments"
        )
        decoded = jax.jit(module.apply, static_argnames="method")(
            variables, last(GOLDEN["ae_latent"]), method="decode"
        )
    assert moments.shape == (1, 4, 6, 8) and moments.dtype == jnp.float32
    assert distance(moments, last(GOLDEN["ae_moments"])) < 1e-5
    assert distance(decoded, last(GOLDEN["ae_decoded"])) < 1e-5


def test_a_latent_is_the_scaled_mean_or_a_sample(published, monkeypatch):
    module, variables = published
    moments = last(GOLDEN["ae_moments"])
    monkeypatch.setattr(FluxAutoencoder, "moments", lambda self, images: jnp.asarray(moments))
    mean = module.apply(variables, moments, method="encode")
    assert distance(mean, last(GOLDEN["ae_latent"])) < 1e-6
    key = jax.random.key(3)
    sample = module.apply(variables, moments, key, method="encode")
    noise = jax.random.normal(key, mean.shape)
    wanted = 0.3611 * jnp.exp(0.5 * moments[..., 4:]) * noise
    np.testing.assert_allclose(sample - mean, wanted, atol=1e-5)


def test_training_takes_means_or_draws_every_image_anew(published, rng):
    module, variables = published
    config = model_config("bagel_7b", flux=module.config)
    one = rng.integers(0, 256, (16, 16, 3), np.uint8)
    images = np.tile(one, (2, 3, 1, 1, 1))
    means = np.asarray(slots_to_tokens(config, images, variables["params"]))
    assert np.ptp(means, axis=(0, 1)).max() < 1e-5
    keys = jax.random.split(jax.random.key(0), 3)
    drawn = np.stack([slots_to_tokens(config, images, variables["params"], key) for key in keys])
    flat = drawn.reshape(18, -1)
    assert len({x.tobytes() for x in flat}) == 18, "no two images share their noise"
    np.testing.assert_array_equal(drawn[1], slots_to_tokens(config, images, variables["params"], keys[1]))
    spread = module.config.scale * np.exp(
        0.5 * np.split(np.asarray(module.apply(variables, to_floats(one[None]), method="moments")), 2, -1)[1]
    )
    assert 0.7 < (drawn - means).std() / np.sqrt((spread**2).mean()) < 1.3


def test_images_and_those_of_prompts_are_drawn_with_keys_of_their_own(monkeypatch):
    keys, changes = [], dict(prompt_image=True)

    def latents(config, images, params, key=None):
        del config, params
        keys.append(key)
        return jnp.zeros((*images.shape[:2], model.layout.latents, model.layout.latent_values))

    monkeypatch.setattr(autoencoder, "slots_to_tokens", latents)
    model, _ = tiny.make_model(**changes)
    for drawn in (True, False):
        options = UnrollOptions(sample_latents=drawn)
        make_inputs(model, tiny.make_batch(1, **changes), jax.random.key(0), options)
    assert len({jax.random.key_data(key).tobytes() for key in keys[:2]}) == 2 and keys[2:] == [None, None]


def test_the_published_sizes_give_the_published_shapes():
    config, image = FluxConfig(), jax.ShapeDtypeStruct((2, 64, 48, 3), jnp.float32)
    module = FluxAutoencoder(config)
    params = jax.eval_shape(module.init, jax.random.key(0), image)
    latents = jax.eval_shape(lambda p, x: module.apply(p, x, method="encode"), params, image)
    images = jax.eval_shape(lambda p, z: module.apply(p, z, method="decode"), params, latents)
    assert latents.shape == (2, 8, 6, 16) and images.shape == (2, 64, 48, 3)
    assert sum(x.size for x in jax.tree.leaves(params)) == 83_819_683


def test_the_model_knows_how_large_its_latents_are():
    config = model_config("bagel_7b")
    assert geometry(config) == (8, 16)
    assert latent_shape(config, (512, 1024)) == ((32, 64), 64)
    with pytest.raises(ValueError, match="multiples of 16"):
        latent_shape(config, (520, 512))
    with pytest.raises(ValueError, match="exceeds model.max_latent_side 64"):
        latent_shape(config, (2048, 512))
    with pytest.raises(ValueError, match="needs its published weights"):
        to_tokens(config, jnp.zeros((1, 16, 16, 3)))


def test_single_fields_of_the_autoencoder_can_be_replaced():
    changed = model_config("bagel_7b", flux={"ch": 64, "ch_mult": [1, 2]})
    assert changed.flux == FluxConfig(ch=64, ch_mult=(1, 2))
