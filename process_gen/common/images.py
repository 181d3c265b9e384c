"""Image files that cannot be read."""

from __future__ import annotations

import struct
import zlib

import PIL.Image

UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, PIL.Image.DecompressionBombError),
    *(TypeError, AttributeError, LookupError, ArithmeticError),  # of a header's fields that are of odd types
)
"""What reading a file that is broken, cut off or no image raises."""
