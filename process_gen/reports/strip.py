"""One picture per trajectory: the prompt, then the draft and the corrections of every step.

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

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from process_gen.reports import images
from process_gen.reports.text import one_line
from process_gen.trajectory.markup import Malformed, Plan
from process_gen.trajectory.stages import Step, Trajectory, Turn

SIDE = 224
MARGIN = 28
GAP = 32
ARROW = 36
LONGEST_ROW = 1900
MOST_TURNS = (LONGEST_ROW + ARROW) // (SIDE + ARROW)
"""Of one step in a row."""
PAPER, INK, MUTED, FRAME = "#ffffff", "#18202a", "#667080", "#d5dae1"
COLOURS = {
    "accepted": "#1a7f4b",
    "refined": "#b45309",
    "unnoticed error": "#b42318",
    "malformed": "#b42318",
    "stopped": "#1d5fbf",
    "limit": "#667080",
}


@dataclasses.dataclass(frozen=True)
class _Line:
    text: str
    colour: str = INK
    bold: bool = False
    most: int = 3


@dataclasses.dataclass(frozen=True)
class _Panel:
    """A step, ready to be drawn; a long one takes several."""

    drawn: tuple[Image.Image, ...]
    title: str
    marks: tuple[str, ...]
    lines: tuple[_Line, ...]

    @property
    def width(self) -> int:
        return max(SIDE, sum(image.width for image in self.drawn) + ARROW * (len(self.drawn) - 1))

    @property
    def image_height(self) -> int:
        return max(image.height for image in self.drawn)


def strip(trajectory: Trajectory, verdict: str | None = None) -> Image.Image:
    """Draws a trajectory as one picture; the input image of a prompt that has one comes first.

    Args:
      trajectory: of the data or sampled.
      verdict: a short line about the final image, e.g. `right` or what is wrong.
    """
    panels: list[_Panel] = []
    if trajectory.prompt_image is not None:
        shown = images.fitted(trajectory.prompt_image, SIDE)
        panels.append(_Panel((shown,), "", (), (_Line("input image", MUTED),)))
    stopped, steps = getattr(trajectory, "stopped", None), trajectory.steps
    for number, step in enumerate(steps, 1):
        panels += _panels(step, number, stopped if number == len(steps) else None)
    rows = _rows(panels)
    width = max([_row_width(row) for row in rows] + [2 * SIDE])
    prompt = _wrap(trajectory.prompt, _font(22, True), width, most=3)
    footer = [] if verdict is None else _wrap(f"Verdict: {verdict}", _font(17, True), width, most=2)
    heights = [_row_height(row) for row in rows]
    height = MARGIN + len(prompt) * 30 + 14 + sum(h + 24 for h in heights) + len(footer) * 24 + MARGIN - 12
    canvas = Image.new("RGB", (width + 2 * MARGIN, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    top = MARGIN
    for line in prompt:
        draw.text((MARGIN, top), line, INK, _font(22, True))
        top += 30
    top += 14
    for row, row_height in zip(rows, heights, strict=True):
        left = MARGIN
        for panel in row:
            _draw_panel(canvas, draw, panel, (left, top), max(p.image_height for p in row))
            left += panel.width + GAP
        top += row_height + 24
    for line in footer:
        draw.text((MARGIN, top - 12), line, INK, _font(17, True))
        top += 24
    return canvas


def sheet(
    pictures: Sequence[np.ndarray], captions: Sequence[str], columns: int = 8, side: int = 192
) -> Image.Image:
    """Draws a grid of images with a caption under each.

    Args:
      pictures: each [height, width, 3] uint8.
      captions: one per picture.
      columns: pictures in a row, at most.
      side: pixels of a shown picture, about.
    """
    if len(pictures) != len(captions):
        raise ValueError(f"{len(pictures)} pictures with {len(captions)} captions")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    if not len(pictures):
        raise ValueError("a sheet needs at least one picture")
    font = _font(14)
    shown = [images.fitted(picture, side) for picture in pictures]
    wrapped = [_wrap(caption, font, side, most=3) for caption in captions]
    columns = min(columns, len(shown))
    tall = max(image.height for image in shown)
    cell, gap = tall + 8 + 18 * max(map(len, wrapped)), 20
    rows = -(-len(shown) // columns)
    size = (columns * (side + gap) + gap, rows * (cell + gap) + gap)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, (image, lines) in enumerate(zip(shown, wrapped, strict=True)):
        left, top = gap + (i % columns) * (side + gap), gap + (i // columns) * (cell + gap)
        _framed(canvas, draw, image, (left, top))
        for k, line in enumerate(lines):
            draw.text((left, top + tall + 8 + 18 * k), line, INK, font)
    return canvas


def _panels(step: Step, number: int, stopped: str | None) -> list[_Panel]:
    """Gathers what a step has to show, broken where a row would not hold its images."""
    return [
        _Panel(
            tuple(images.fitted(turn.image, SIDE) for turn in turns),
            "" if first else str(number),
            () if first else _marks(step, stopped),
            tuple(line for turn in turns for line in _lines(turn)),
        )
        for first in range(0, len(step.turns), MOST_TURNS)
        for turns in [step.turns[first : first + MOST_TURNS]]
    ]


def _marks(step: Step, stopped: str | None) -> tuple[str, ...]:
    """How a step went, names of `COLOURS`."""
    marks = ["refined" if step.refines else "accepted"]
    if not step.turns[-1].image_ok:
        marks = ["unnoticed error"]
    if any(isinstance(said, Malformed) for turn in step.turns for said in (turn.plan, turn.instruction)):
        marks.append("malformed")
    if stopped is not None:
        marks.append("stopped" if stopped == "model" else "limit")
    return tuple(marks)


def _lines(turn: Turn) -> list[_Line]:
    """What is said before the image and after it."""
    said, lines = turn.instruction if turn.refines else turn.plan, []
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


def _draw_panel(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    panel: _Panel,
    corner: tuple[int, int],
    image_height: int,
) -> None:
    left, top = corner
    for i, image in enumerate(panel.drawn):
        if i:
            _arrow(draw, (left - ARROW + 6, top + image_height // 2), ARROW - 14)
        _framed(canvas, draw, image, (left, top))
        left += image.width + ARROW
    left, top = corner[0], top + image_height + 12
    if panel.title:
        draw.text((left, top), panel.title, INK, _font(16, True))
        left += draw.textlength(panel.title, _font(16, True)) + 10
    for mark in panel.marks:
        end = left + draw.textlength(mark, _font(13, True)) + 16
        draw.rounded_rectangle((left, top - 1, end, top + 20), 10, fill=COLOURS[mark])
        draw.text((left + 8, top + 9), mark, PAPER, _font(13, True), anchor="lm")
        left = end + 6
    top += 30
    for text, line in _wrapped(panel):
        draw.text((corner[0], top), text, line.colour, _font(15, line.bold))
        top += 20


def _wrapped(panel: _Panel) -> list[tuple[str, _Line]]:
    return [
        (text, line)
        for line in panel.lines
        for text in _wrap(line.text, _font(15, line.bold), panel.width, line.most)
    ]


def _rows(panels: Sequence[_Panel]) -> list[list[_Panel]]:
    """Breaks the panels into rows that a screen can show."""
    rows: list[list[_Panel]] = []
    for panel in panels:
        if not rows or _row_width([*rows[-1], panel]) > LONGEST_ROW:
            rows.append([])
        rows[-1].append(panel)
    return rows


def _row_width(row: Sequence[_Panel]) -> int:
    return sum(panel.width for panel in row) + GAP * (len(row) - 1)


def _row_height(row: Sequence[_Panel]) -> int:
    text = max(len(_wrapped(panel)) for panel in row)
    return max(panel.image_height for panel in row) + 12 + 30 + 20 * text


def _framed(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, image: Image.Image, corner: tuple[int, int]
) -> None:
    left, top = corner
    canvas.paste(image, corner)
    draw.rectangle((left - 1, top - 1, left + image.width, top + image.height), outline=FRAME)


def _arrow(draw: ImageDraw.ImageDraw, tip: tuple[int, int], length: int) -> None:
    left, middle = tip
    right, colour = left + length, COLOURS["refined"]
    draw.line((left, middle, right - 6, middle), colour, 3)
    draw.polygon([(right, middle), (right - 9, middle - 6), (right - 9, middle + 6)], colour)


@functools.lru_cache(maxsize=16)
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", name)
    return ImageFont.truetype(str(path), size)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    """Breaks text into at most `most` lines no wider than `width`; what is left out ends in an ellipsis."""
    words, lines = one_line(text[:2000]).split(" "), [""]
    while words and len(lines) <= most:
        word = words.pop(0)
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if font.getlength(longer) <= width:
            lines[-1] = longer
        elif lines[-1]:
            lines.append("")
            words.insert(0, word)
        else:
            fits = 1
            while font.getlength(word[: fits + 1]) <= width:
                fits += 1
            lines[-1] = word[:fits]
            lines.append("")
            words.insert(0, word[fits:])
    if len(lines) <= most and len(text) <= 2000:
        return [line for line in lines if line]
    kept = lines[:most]
    while kept[-1] and font.getlength(kept[-1] + "…") > width:
        kept[-1] = kept[-1][:-1]
    return [*kept[:-1], kept[-1].rstrip() + "…"]
