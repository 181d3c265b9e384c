"""Images at the sizes of a model: the base model's own rule, and a layout's one size."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st

from process_gen.data.images import VAE, VIT, Resize, fit, model_sizes, read_rgb, rules_for, to_floats

SIDES = st.integers(1, 6000)


@pytest.mark.parametrize(
    ("height", "width", "vae", "vit"),
    [
        (1024, 1024, (1024, 1024), (980, 980)),
        (512, 512, (512, 512), (518, 518)),  # 36.6 strides of 14 round up
        (600, 800, (608, 800), (602, 798)),
        (3000, 4000, (768, 1024), (728, 980)),
        (100, 150, (512, 768), (224, 336)),
        (100, 2000, (48, 1024), (56, 980)),  # too narrow for both: the longer side counts
    ],
)
def test_the_published_sizes(height, width, vae, vit):
    assert VAE.size(height, width) == vae and VIT.size(height, width) == vit
    assert VAE.size(width, height) == vae[::-1] and VIT.size(width, height) == vit[::-1]


@given(SIDES, SIDES)
@settings(deadline=None)
def test_sides_are_multiples_within_the_limits(height, width):
    for resize in (VAE, VIT, Resize(4, 8, 30)):
        sides = resize.size(height, width)
        assert all(side % resize.stride == 0 and side >= resize.stride for side in sides)
        assert max(sides) <= resize.longest + resize.stride / 2
        if max(height, width) * resize.shortest <= min(height, width) * resize.longest:
            assert min(sides) >= resize.shortest - resize.stride


def test_an_image_of_the_right_size_is_left_alone():
    image = np.random.default_rng(0).integers(0, 256, (512, 768, 3), np.uint8)
    assert VAE(image) is image and fit(image, (512, 768)) is image


def test_a_photograph_keeps_its_shape_and_its_brightness():
    whole = skimage.data.chelsea()  # 300 x 451
    resized = Resize(stride=16, shortest=64, longest=128)(whole)
    assert resized.shape == (80, 128, 3) and resized.dtype == np.uint8
    assert np.abs(resized.mean((0, 1)) - whole.mean((0, 1))).max() < 1


def test_shrinking_does_not_alias():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[::2] = 255
    for small in (fit(stripes, (32, 32)), Resize(16, 16, 32)(stripes)):
        inner = small[2:-2].astype(int)
        assert small.shape == (32, 32, 3) and np.abs(inner - 127.5).max() < 3


def test_fitting_crops_around_the_middle():
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    assert (fit(wide, (10, 10))[:, 1:-1] >= 195).all()


def test_a_layout_for_an_image_at_its_own_shape():
    assert model_sizes(3000, 4000) == ((768, 1024), (52, 70))
    assert model_sizes(64, 96, Resize(16, 32, 48), Resize(14, 28, 42)) == ((32, 48), (2, 3))


def test_values_are_as_both_encoders_read_them():
    image = np.array([[[0, 255, 51]]], np.uint8)
    np.testing.assert_allclose(to_floats(image), [[[-1, 1, -0.6]]], atol=1e-6)
    assert to_floats(image).dtype == np.float32


def test_deep_and_webp_files_are_read_at_their_own_size(tmp_path):
    ramp = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    PIL.Image.fromarray(ramp).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "deep.png")[..., 1].ravel(), np.arange(256))
    PIL.Image.new("RGBA", (7, 5), (255, 0, 0, 0)).save(tmp_path / "clear.webp", lossless=True)
    assert read_rgb(tmp_path / "clear.webp").shape == (5, 7, 3)
    assert (read_rgb(tmp_path / "clear.webp") == 255).all()


def test_the_rules_of_the_published_model_follow_from_its_tables():
    assert rules_for((16, 64), (14, 70)) == (VAE, VIT)
    assert rules_for((8, 8), None) == (Resize(8, 32, 64), None)
    assert model_sizes(300, 100, *rules_for((8, 8), None)) == ((64, 24), (0, 0))
