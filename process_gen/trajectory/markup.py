"""Writes and parses the marked-up texts of stages.

    plan    <ins>what this stroke does</ins><des>the scene afterwards</des>
    refine  <refine>what to correct</refine>

Writing then parsing gives back the same strings exactly. Text that a model
wrote may be anything: what does not parse becomes a `Malformed` value that
says what is wrong, so that one bad row never stops a batch.
"""

from __future__ import annotations

import dataclasses
import re

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
VISION_START = "<|vision_start|>"
VISION_END = "<|vision_end|>"
END_OF_TEXT = "<|endoftext|>"
INS, INS_END = "<ins>", "</ins>"
DES, DES_END = "<des>", "</des>"
REFINE, REFINE_END = "<refine>", "</refine>"

CONTROL_TOKENS = (END_OF_TEXT, IM_START, IM_END, VISION_START, VISION_END)
MARKUP_TOKENS = (INS, INS_END, DES, DES_END, REFINE, REFINE_END)
SPECIAL_TOKENS = CONTROL_TOKENS + MARKUP_TOKENS
SPECIAL_PATTERN = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
"""Matches any special token."""

MEANINGS = {
    END_OF_TEXT: "end of text",
    IM_START: "start of message",
    IM_END: "end of message",
    VISION_START: "start of image",
    VISION_END: "end of image",
    INS: "instruction",
    INS_END: "end of instruction",
    DES: "description",
    DES_END: "end of description",
    REFINE: "correction",
    REFINE_END: "end of correction",
}
"""Words whose mean embedding a token starts from in published weights (`process_gen.weights.start`)."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step sets out to do.

    Attributes:
      instruction: what this stroke adds or changes (`<ins>`).
      description: the whole scene as it should stand afterwards (`<des>`).
    """

    instruction: str
    description: str


@dataclasses.dataclass(frozen=True)
class Malformed:
    """Text that is not what its stage asks for.

    Attributes:
      reason: what is wrong, for people.
      text: the text as it came.
    """

    reason: str
    text: str


class BadText(ValueError):
    """A text with a forbidden token or character; the message says which and where."""


def check_characters(text: str, what: str) -> str:
    """Returns `text`; raises `BadText` for an unpaired surrogate, which JSON allows but UTF-8 does not."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half, place = text[error.start], text[max(error.start - 20, 0) : error.start]
        raise BadText(f"{what} holds an unpaired surrogate, {half!r}, behind {place!r}") from None
    return text


def check_plain(text: str, what: str) -> str:
    """Returns `text`; raises `BadText` for a special token or an unpaired surrogate in it."""
    check_characters(text, what)
    if found := SPECIAL_PATTERN.search(text):
        raise BadText(f"{what} must not contain the token {found[0]}: {text!r}")
    return text


def write_plan(plan: Plan) -> str:
    """Writes a plan; raises ValueError if a field holds a special token."""
    instruction = check_plain(plan.instruction, "the instruction of a plan")
    description = check_plain(plan.description, "the description of a plan")
    return f"{INS}{instruction}{INS_END}{DES}{description}{DES_END}"


def parse_plan(text: str) -> Plan | Malformed:
    """Parses a plan, the inverse of `write_plan`."""
    fields = _fields(text, ((INS, INS_END), (DES, DES_END)))
    return fields if isinstance(fields, Malformed) else Plan(*fields)


def write_refine(instruction: str) -> str:
    """Writes a refine instruction; raises ValueError on a special token."""
    check_plain(instruction, "a refine instruction")
    return f"{REFINE}{instruction}{REFINE_END}"


def parse_refine(text: str) -> str | Malformed:
    """Parses a refine instruction, the inverse of `write_refine`."""
    fields = _fields(text, ((REFINE, REFINE_END),))
    return fields if isinstance(fields, Malformed) else fields[0]


def _fields(text: str, tags: tuple[tuple[str, str], ...]) -> tuple[str, ...] | Malformed:
    """Reads consecutive tagged fields that make up the whole of `text`."""
    rest, fields = text, []
    for opening, closing in tags:
        if not rest.lstrip().startswith(opening):
            return Malformed(f"expected {opening} at {rest[:20]!r}", text)
        inside, found, rest = rest.lstrip()[len(opening) :].partition(closing)
        if not found:
            return Malformed(f"{opening} is never closed", text)
        if stray := SPECIAL_PATTERN.search(inside):
            return Malformed(f"{stray[0]} inside {opening}", text)
        fields.append(inside)
    if rest.strip():
        return Malformed(f"text after {tags[-1][1]}: {rest.strip()[:20]!r}", text)
    return tuple(fields)
