"""Turns image arrays into pictures for reports: resizing, PNG bytes, data: URLs."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

SMALL = 128
"""Images below this many pixels a side are shown with square pixels."""


def picture(image: np.ndarray) -> Image.Image:
    """[height, width, 3] uint8 -> a picture; raises ValueError on anything else."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"an image must be [height, width, 3] uint8, got {image.shape} {image.dtype}")
    return Image.fromarray(image)


def fitted(image: np.ndarray, side: int) -> Image.Image:
    """Resizes an image to at most `side` pixels on its longer side.

    An image of at most half of that is enlarged by a whole factor with square pixels, so
    that its pixels stay visible; any other is resized with a smooth filter.
    """
    shown = picture(image)
    longer = max(shown.size)
    if longer * 2 <= side:
        factor = side // longer
        return shown.resize((shown.width * factor, shown.height * factor), Image.Resampling.NEAREST)
    size = tuple(max(1, round(edge * side / longer)) for edge in shown.size)
    return shown.resize(size, Image.Resampling.LANCZOS)


def png(image: np.ndarray | Image.Image) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else picture(image)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_url(image: np.ndarray, largest: int) -> tuple[str, int, int]:
    """(data: URL, width, height) of the image, shrunk if its longer side exceeds `largest` pixels.

    Images below `SMALL` pixels a side are PNG, to keep every pixel; larger ones JPEG, to keep pages small.
    """
    shown = fitted(image, largest) if max(image.shape[:2]) > largest else picture(image)
    if max(image.shape[:2]) < SMALL:
        kind, content = "png", png(shown)
    else:
        buffer = io.BytesIO()
        shown.save(buffer, "JPEG", quality=85)
        kind, content = "jpeg", buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}", shown.width, shown.height
