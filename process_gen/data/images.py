"""Reads image files of any size and mode as RGB arrays of the size that a model takes.

A layout has one image size. Training crops an image around its middle to that
aspect ratio (`fit`), or to the nearest of several (`buckets`). The base model
(BAGEL) keeps each image's own aspect ratio and resizes it by a rule (`Resize`):
`rules_for` scales that rule to a model's position tables, and `model_sizes`
gives the layout's sizes for one image.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import BinaryIO

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps

from process_gen.common.images import UNREADABLE

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded."""

ImagePath = str | pathlib.Path | BinaryIO
"""What an image is read from: a path, or a file that is open."""

_TURNED = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the transpose that makes the image upright."""


def read_rgb(path: ImagePath) -> np.ndarray:
    """Returns a PNG, JPEG or WebP file as [height, width, 3] uint8, at its own size.

    The camera's rotation is applied, transparency is laid over white, 16-bit
    values are scaled, grey and palette images become colour.

    Raises:
      one of `UNREADABLE`: it is missing, broken or too large.
    """
    with PIL.Image.open(path, formats=FORMATS) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError(f"{opened.width} x {opened.height} pixels, at most {MAX_PIXELS} are read")
        opened.load()  # decodes the pixels, so broken ones raise here
        turn = _TURNED.get(_orientation(opened))
        return np.asarray(_to_rgb(opened if turn is None else opened.transpose(turn)), np.uint8)


def _orientation(opened: PIL.Image.Image) -> int:
    """Returns the EXIF orientation; 1 (upright) where it is missing or unreadable."""
    try:
        found = opened.getexif().get(PIL.ExifTags.Base.Orientation, 1)
    except UNREADABLE:
        return 1
    return found if isinstance(found, int) else 1


def shape_of(path: ImagePath) -> tuple[int, int]:
    """Height and width of a file as `read_rgb` returns it; nothing but its header is read.

    Raises:
      one of `UNREADABLE`: it is missing or no image.
    """
    with PIL.Image.open(path, formats=FORMATS) as opened:
        turned = _orientation(opened) in (5, 6, 7, 8)
        return (opened.width, opened.height) if turned else (opened.height, opened.width)


def read_image(path: ImagePath, image_size: tuple[int, int]) -> np.ndarray:
    """Returns a file as [*image_size, 3] uint8: `read_rgb`, then `fit`."""
    return fit(read_rgb(path), image_size)


def fit(image: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Crops [H, W, 3] uint8 around its middle to the shape of `image_size` and resizes it, in one pass."""
    height, width = image_size
    if image.shape[:2] == (height, width):
        return image
    fitted = PIL.ImageOps.fit(PIL.Image.fromarray(image), (width, height), PIL.Image.Resampling.BICUBIC)
    return np.asarray(fitted, np.uint8)


@dataclasses.dataclass(frozen=True)
class Resize:
    """How the base model (BAGEL) resizes an image: aspect ratio kept, sides rounded to multiples of a stride.

    Attributes:
      stride: both sides become multiples of it, in pixels.
      shortest: an image whose shorter side is below it is scaled up to it.
      longest: an image whose longer side is above it is scaled down to it; wins
        over `shortest` where an image is too narrow for both.
    """

    stride: int
    shortest: int
    longest: int

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing."""
        scale = max(min(1.0, self.longest / max(height, width)), self.shortest / min(height, width))
        sides = self._scaled(height, width, scale)
        if max(sides) > self.longest:
            sides = self._scaled(*sides, self.longest / max(sides))
        return sides

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Resizes [H, W, 3] uint8 to `size`: bicubic, antialiased where it shrinks."""
        height, width = self.size(*image.shape[:2])
        if image.shape[:2] == (height, width):
            return image
        resized = PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BICUBIC)
        return np.asarray(resized, np.uint8)

    def _scaled(self, height: int, width: int, scale: float) -> tuple[int, int]:
        def side(length: int) -> int:
            return max(self.stride, round(round(length * scale) / self.stride) * self.stride)

        return side(height), side(width)


def model_sizes(
    height: int, width: int, vae: Resize, vit: Resize | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns a layout's `image_size` (pixels) and `vit_grid` (patches) for an image at its own aspect ratio.

    `vae` and `vit` are the rules of `rules_for`; without `vit` the grid is (0, 0).
    """
    image_size = vae.size(height, width)
    if vit is None:
        return image_size, (0, 0)
    rows, columns = vit.size(*image_size)
    return image_size, (rows // vit.stride, columns // vit.stride)


def rules_for(latent: tuple[int, int], view: tuple[int, int] | None) -> tuple[Resize, Resize | None]:
    """Returns the base model's resize rules, scaled to the position tables of a model.

    BAGEL's own rules: the autoencoder gets sides of 512 to 1,024 pixels in steps of 16. The ViT gets the
    resized image of the autoencoder, resized again to sides of 224 to 980 in steps of 14.

    Args:
      latent: side of a latent token in pixels, and the position table's entries along a side.
      view: the same for the ViT's patches; None, and no second rule, without a ViT.
    """
    (side, most), vit = latent, None
    if view is not None:
        patch, places = view
        vit = Resize(patch, patch * max(1, round(places * 16 / 70)), patch * places)
    return Resize(side, side * max(1, most // 2), side * most), vit


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode.startswith("I"):
        values = np.minimum(np.asarray(image).astype(np.uint32), 65535)
        image = PIL.Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = PIL.Image.new("RGBA", layer.size, "white")
        return PIL.Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")
