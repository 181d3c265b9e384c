"""Image files: conversion from and to arrays, and the errors of broken files."""

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
    *(TypeError, AttributeError, LookupError, ArithmeticError),  # from header fields of unexpected types
)
"""What Pillow raises for files that are damaged, cut off or no images."""


def png(image: np.ndarray) -> bytes:
    """Encodes an image, [H, W, 3] uint8, as PNG."""
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def rgb(file: epath.PathLike | BinaryIO) -> np.ndarray:
    """Reads an image file of any colour mode as [H, W, 3] uint8; raises one of `UNREADABLE`."""
    with PIL.Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))
