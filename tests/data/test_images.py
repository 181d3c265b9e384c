"""Images at the sizes of a model: the base model's own rule, and a layout's one size."""

from __future__ import annotations

import io
import struct

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st

from process_gen.data.images import Resize, fit, model_sizes, read_image, read_rgb, rules_for, shape_of

VAE, VIT = Resize(stride=16, shortest=512, longest=1024), Resize(stride=14, shortest=224, longest=980)
"""What the published model gives its two encoders."""

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
    assert model_sizes(3000, 4000, VAE, VIT) == ((768, 1024), (52, 70))
    assert model_sizes(64, 96, Resize(16, 32, 48), Resize(14, 28, 42)) == ((32, 48), (2, 3))


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


def with_exif(orientation: int, *odd: tuple[int, int, int, int]) -> bytes:
    """A JPEG whose EXIF has an orientation and entries (tag, type, count, value)."""
    entries = sorted([(0x112, 3, 1, orientation), *odd])
    ifd = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *one) for one in entries)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + ifd + struct.pack("<I", 0)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("orientation", [*range(10), 65535])
def test_the_cameras_rotation_is_applied(tmp_path, orientation):
    path = tmp_path / "a.jpg"
    path.write_bytes(with_exif(orientation))
    with PIL.Image.open(path) as opened:
        upright = np.asarray(PIL.ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(read_rgb(path), upright)
    np.testing.assert_array_equal(read_image(path, upright.shape[:2]), upright)
    assert shape_of(path) == upright.shape[:2]


@pytest.mark.parametrize(
    "odd",
    [
        (0x132, 5, 1, 8),  # a date as a fraction
        (0x11A, 2, 4, 0x343231),  # a resolution as text
        (0x8769, 2, 4, 0x343231),  # a place in the file as text
        (0x10F, 7, 2**31, 2**31),  # a maker beyond the end of the file
    ],
    ids=["date", "resolution", "place", "length"],
)
@pytest.mark.filterwarnings("ignore:Tag data larger than file")
def test_odd_entries_beside_it_do_not_matter(tmp_path, odd):
    (tmp_path / "a.jpg").write_bytes(with_exif(6, odd))
    (tmp_path / "b.jpg").write_bytes(with_exif(6))
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.jpg"), read_rgb(tmp_path / "b.jpg"))
    assert shape_of(tmp_path / "a.jpg") == (20, 12)
