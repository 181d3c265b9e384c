"""One picture per trajectory: the prompt, then draft and correction of every step.

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
from process_gen.trajectory.markup import Malformed
from process_gen.trajectory.sampled import SampledStep, SampledTrajectory
from process_gen.trajectory.stages import Plan, Step, Trajectory

SIDE = 224
MARGIN = 28
GAP = 32
ARROW = 36
LONGEST_ROW = 1900
PAPER, INK, MUTED, FRAME = "#ffffff", "#18202a", "#667080", "#d5dae1"
COLOURS = {
    "accepted": "#1a7f4b",
    "refined": "#b45309",
    "unnoticed error": "#b42318",
    "malformed": "#b42318",
    "stopped": "#1d5fbf",
    "step limit": "#667080",
    "no image": "#667080",
}


@dataclasses.dataclass(frozen=True)
class _Line:
    text: str
    colour: str = INK
    bold: bool = False
    most: int = 3


@dataclasses.dataclass(frozen=True)
class _Panel:
    """A step, ready to be drawn."""

    drawn: tuple[Image.Image, ...]
    marks: tuple[str, ...]
    lines: tuple[_Line, ...]

    @property
    def width(self) -> int:
        return max(SIDE, sum(image.width for image in self.drawn) + ARROW * (len(self.drawn) - 1))

    @property
    def image_height(self) -> int:
        return max((image.height for image in self.drawn), default=0)


def strip(trajectory: Trajectory | SampledTrajectory, verdict: str | None = None) -> Image.Image:
    """Draws a trajectory as one picture; the input image of a prompt that has one comes first.

    Args:
      trajectory: of the data or sampled.
      verdict: a short line about the final image, e.g. `right` or what is wrong.
    """
    stopped = getattr(trajectory, "stopped", None)
    last = len(trajectory.steps) - 1
    panels = [_panel(step, stopped if i == last else None) for i, step in enumerate(trajectory.steps)]
    given = trajectory.prompt_image is not None
    if given:
        panels.insert(
            0, _Panel((images.fitted(trajectory.prompt_image, SIDE),), (), (_Line("input image", MUTED),))
        )
    rows = _rows(panels)
    width = max([_row_width(row) for row in rows] + [2 * SIDE])
    prompt = _wrap(trajectory.prompt, _font(22, True), width, most=3)
    footer = [] if verdict is None else _wrap(f"Verdict: {verdict}", _font(17, True), width, most=2)
    heights = [_row_height(row) for row in rows]
    height = MARGIN + len(prompt) * 30 + 14 + sum(h + 24 for h in heights) + len(footer) * 24 + MARGIN - 12
    canvas = Image.new("RGB", (width + 2 * MARGIN, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    top, number = MARGIN, 0 if given else 1
    for line in prompt:
        draw.text((MARGIN, top), line, INK, _font(22, True))
        top += 30
    top += 14
    for row, row_height in zip(rows, heights, strict=True):
        left = MARGIN
        for panel in row:
            _draw_panel(canvas, draw, panel, (left, top), max(p.image_height for p in row), number)
            left, number = left + panel.width + GAP, number + 1
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


def _panel(step: Step | SampledStep, stopped: str | None) -> _Panel:
    """Gathers what a step has to show."""
    if isinstance(step, SampledStep):
        refine, refined = step.refine, step.refined
    else:
        refine, refined = step.refine and step.refine.instruction, step.refine and step.refine.image
    inspect = step.inspect_text if isinstance(step, SampledStep) else step.inspect
    shown = [image for image in (step.sketch, refined) if image is not None]
    marks = ["no image" if not shown else "accepted" if refined is None else "refined"]
    if isinstance(step, Step) and not step.sketch_ok and refined is None:
        marks = ["unnoticed error"]
    if isinstance(step.plan, Malformed) or isinstance(refine, Malformed):
        marks.append("malformed")
    if stopped is not None:
        marks.append("stopped" if stopped == "model" else "step limit")
    lines = _plan_lines(step.plan)
    if inspect:
        lines.append(_Line(f"Inspect: {inspect}", MUTED))
    if isinstance(refine, Malformed):
        lines += [_Line(f"Refine: {refine.text}"), _Line(refine.reason, COLOURS["malformed"])]
    elif refine is not None:
        lines.append(_Line(f"Refine: {refine}", COLOURS["refined"]))
    return _Panel(tuple(images.fitted(image, SIDE) for image in shown), tuple(marks), tuple(lines))


def _plan_lines(plan: Plan | Malformed | None) -> list[_Line]:
    if plan is None:
        return []
    if isinstance(plan, Malformed):
        return [_Line(plan.text or "(no text)"), _Line(plan.reason, COLOURS["malformed"])]
    return [_Line(plan.instruction, bold=True)]


def _draw_panel(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    panel: _Panel,
    corner: tuple[int, int],
    image_height: int,
    number: int,
) -> None:
    left, top = corner
    for i, image in enumerate(panel.drawn):
        if i:
            _arrow(draw, (left - ARROW + 6, top + image_height // 2), ARROW - 14)
        _framed(canvas, draw, image, (left, top))
        left += image.width + ARROW
    left, top = corner[0], top + image_height + 12
    if number:
        draw.text((left, top), str(number), INK, _font(16, True))
        left += draw.textlength(str(number), _font(16, True)) + 10
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
