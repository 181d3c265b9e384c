"""Image files: what is wrong with one, and both ways between a file and an array."""

from __future__ import annotations

import io
import struct
import zlib
from typing import BinaryIO

import numpy as np
import PIL.Image
from etils import epath

UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, PIL.Image.DecompressionBombError),
    *(TypeError, AttributeError, LookupError, ArithmeticError),  # of a header's fields that are of odd types
)
"""What reading a file that is broken, cut off or no image raises."""


def png(image: np.ndarray) -> bytes:
    """The PNG file of an image, [H, W, 3] uint8."""
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def rgb(file: epath.PathLike | BinaryIO) -> np.ndarray:
    """An image file of any mode as [H, W, 3] uint8; raises one of `UNREADABLE`."""
    with PIL.Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))
