"""Makes text of users and models safe to show.

Characters that are invisible, reorder their neighbours or control a terminal are
shown as escapes, so that a reader sees what the text contains.
"""

from __future__ import annotations

import unicodedata

JOINERS = "\u200c\u200d"
"""Invisible characters that are kept: Persian, Indic scripts and emoji need them."""


def visible(text: str, keep: str = "\n\t") -> str:
    """Drops NUL and shows every other control, bidi or surrogate character as an escape.

    Args:
      text: anything.
      keep: control characters that stay as they are.
    """
    return "".join(_shown(char, keep) for char in text)


def one_line(text: str) -> str:
    """`visible` with every run of white space as one blank."""
    return visible(" ".join(text.split()), keep="")


def _shown(char: str, keep: str) -> str:
    if char in keep or char in JOINERS:
        return char
    if char == "\0":
        return ""
    code = ord(char)
    hidden = unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") or code & 0xFFFE == 0xFFFE
    if not hidden:
        return char
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
