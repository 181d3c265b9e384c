"""Draws trajectories as pictures. A strip has the prompt, then the draft and corrections of every step:

a red circle left of a blue square
+--------+     +--------+  ->  +--------+
| draft  |     | draft  |      | refined|
+--------+     +--------+      +--------+
1  accepted    2  refined, stopped
draw the ...   add the ...
looks right    the square is red
               make the square blue
"""

from __future__ import annotations

import functools
import pathlib
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from process_gen.reports import images
from process_gen.reports.text import one_line
from process_gen.trajectory.markup import Malformed, Plan
from process_gen.trajectory.sampled import SampledTrajectory
from process_gen.trajectory.stages import Step, Trajectory, Turn

SIDE, SMALL_SIDE = 224, 96
"""Longest side of an image in strips and sheets, and in contact sheets, in pixels (see `images.fitted`)."""
MARGIN = 28
GAP = 32
ARROW = 36
LONGEST_ROW = 1900
MOST_TURNS = LONGEST_ROW // (SIDE + ARROW)
"""Turns of a step that fit side by side."""
PAPER, INK, MUTED, FRAME = "#ffffff", "#18202a", "#667080", "#d5dae1"
RIGHT, WRONG = "#1a7f4b", "#b42318"
COLOURS = {
    "accepted": RIGHT,
    "refined": "#b45309",
    "unnoticed error": WRONG,
    "malformed": WRONG,
    "stopped": "#1d5fbf",
    "limit": MUTED,
}


class _Line(NamedTuple):
    text: str
    colour: str = INK
    bold: bool = False


def strip(trajectory: Trajectory, verdict: str | None = None) -> Image.Image:
    """Draws a trajectory as one picture; the input image of a prompt that has one comes first.

    Args:
      trajectory: of the data or sampled.
      verdict: a short line about the final image, e.g. `right` or what is wrong.
    """
    panels: list[Image.Image] = []
    if trajectory.prompt_image is not None:
        shown = _framed(trajectory.prompt_image, SIDE)
        panels.append(_joined([shown, _text([_Line("input image", MUTED)], SIDE)], 12, axis=1))
    stopped, steps = getattr(trajectory, "stopped", None), trajectory.steps
    for number, step in enumerate(steps, 1):
        panels += _panels(step, number, stopped if number == len(steps) else None)
    rows: list[list[Image.Image]] = [[]]
    for panel in panels:
        if sum(one.width + GAP for one in rows[-1]) + panel.width > LONGEST_ROW:
            rows.append([])
        rows[-1].append(panel)
    body = [_joined(row, GAP, axis=0) for row in rows]
    width = max(2 * SIDE, *(row.width for row in body))
    asked = " ".join(filter(None, (trajectory.prompt, trajectory.instruction)))
    head = _text([_Line(asked, bold=True)], width, size=22)
    foot = [] if verdict is None else [_text([_Line(f"Verdict: {verdict}", bold=True)], width, size=17)]
    return ImageOps.expand(_joined([head, *body, *foot], 20, axis=1), MARGIN, PAPER)


def sheet(pictures: Sequence[np.ndarray], captions: Sequence[str], columns: int) -> Image.Image:
    """Draws a grid of images, [height, width, 3] uint8, at least one, with a caption under each."""
    cells = [
        _joined([_framed(picture, SIDE), _text([_Line(caption)], SIDE + 2, size=14)], 8, axis=1)
        for picture, caption in zip(pictures, captions, strict=True)
    ]
    rows = [_joined(cells[i : i + columns], 16, axis=0) for i in range(0, len(cells), columns)]
    return ImageOps.expand(_joined(rows, 16, axis=1), 16, PAPER)


def contact_sheet(trajectories: Sequence[SampledTrajectory]) -> Image.Image:
    """Draws one row per trajectory, at least one: every draft and correction, in order.

    The last image has a border, green where the verdict is right and red where it is wrong.
    """
    rows = []
    for one in trajectories:
        *before, last = (images.fitted(turn.image, SMALL_SIDE) for turn in one.turns)
        border = PAPER if one.verdict is None else RIGHT if one.verdict["ok"] else WRONG
        bordered = [*(ImageOps.expand(image, 4, PAPER) for image in before), ImageOps.expand(last, 4, border)]
        rows.append(_joined(bordered, 8, axis=0))
    return ImageOps.expand(_joined(rows, 8, axis=1), 4, PAPER)


def _panels(step: Step, number: int, stopped: str | None) -> list[Image.Image]:
    """Draws a step as one panel, or as several of `MOST_TURNS` turns each."""
    badges = [_text([_Line(str(number), bold=True)], 24), *map(_badge, _marks(step, stopped))]
    head, panels = _joined(badges, 6, axis=0), []
    for first in range(0, len(step.turns), MOST_TURNS):
        turns = step.turns[first : first + MOST_TURNS]
        drawn = [_framed(turn.image, SIDE) for turn in turns]
        shown = [one for image in drawn for one in (_arrow(image.height), image)]
        row = _joined(shown[1:], 0, axis=0)
        lines = _text([line for turn in turns for line in _lines(turn)], row.width)
        panels.append(_joined([row, *([] if first else [head]), lines], 10, axis=1))
    return panels


def _marks(step: Step, stopped: str | None) -> tuple[str, ...]:
    """The outcomes of a step, as names of `COLOURS`. `stopped` is given for the last step alone."""
    went = "refined" if step.refines else "accepted"
    marks = [went if step.turns[-1].image_ok else "unnoticed error"]
    if any(isinstance(turn.parsed, Malformed) for turn in step.turns):
        marks.append("malformed")
    if stopped is not None:
        marks.append("stopped" if stopped == "model" else "limit")
    return tuple(marks)


def _lines(turn: Turn) -> list[_Line]:
    """The lines to write below the image of a turn: the text before it and its inspection."""
    said, lines = turn.parsed, []
    if isinstance(said, Malformed):
        text = f"Refine: {said.text}" if turn.refines else said.text or "(no text)"
        lines += [_Line(text), _Line(said.reason, COLOURS["malformed"])]
    elif isinstance(said, Plan):
        lines.append(_Line(said.instruction, bold=True))
    elif said is not None:
        lines.append(_Line(f"Refine: {said}", COLOURS["refined"]))
    if turn.after:
        lines.append(_Line(f"Inspect: {turn.after}", MUTED))
    return lines


def _joined(pictures: Sequence[Image.Image], gap: int, axis: int) -> Image.Image:
    """Puts pictures side by side (axis 0) or one below the other (axis 1)."""
    size = [max(one.width for one in pictures), max(one.height for one in pictures)]
    size[axis] = sum(one.size[axis] for one in pictures) + gap * (len(pictures) - 1)
    canvas, corner = Image.new("RGB", tuple(size), PAPER), [0, 0]
    for one in pictures:
        canvas.paste(one, tuple(corner))
        corner[axis] += one.size[axis] + gap
    return canvas


def _framed(image: np.ndarray, side: int) -> Image.Image:
    return ImageOps.expand(images.fitted(image, side), 1, FRAME)


def _arrow(height: int) -> Image.Image:
    canvas, middle, tip = Image.new("RGB", (ARROW, height), PAPER), height // 2, ARROW - 8
    draw = ImageDraw.Draw(canvas)
    draw.line((6, middle, tip - 6, middle), COLOURS["refined"], 3)
    draw.polygon([(tip, middle), (tip - 9, middle - 6), (tip - 9, middle + 6)], COLOURS["refined"])
    return canvas


def _badge(mark: str) -> Image.Image:
    font = _font(13, bold=True)
    width = round(font.getlength(mark)) + 16
    canvas = Image.new("RGB", (width, 22), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.rounded_rectangle((0, 0, width - 1, 21), 10, fill=COLOURS[mark])
    draw.text((8, 10), mark, PAPER, font, anchor="lm")
    return canvas


def _text(lines: Sequence[_Line], width: int, size: int = 15) -> Image.Image:
    """Draws lines of text, each wrapped to `width` pixels and at most three rows."""
    rows = [(row, one) for one in lines for row in _wrap(one.text, _font(size, one.bold), width)]
    pitch = size * 4 // 3
    canvas = Image.new("RGB", (width, pitch * len(rows)), PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, (row, one) in enumerate(rows):
        draw.text((0, pitch * number), row, one.colour, _font(size, one.bold))
    return canvas


@functools.lru_cache(maxsize=16)
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", name)
    return ImageFont.truetype(str(path), size)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, most: int = 3) -> list[str]:
    """Wraps text into at most `most` lines of at most `width` pixels; text cut off ends in an ellipsis."""
    text = one_line(text[:2000])
    letters = int(1.3 * len(text) * width / max(1, font.getlength(text))) + 1
    while True:
        lines = textwrap.wrap(text, letters, max_lines=most, placeholder="…")
        if letters == 1 or all(font.getlength(line) <= width for line in lines):
            return lines
        letters -= 1
