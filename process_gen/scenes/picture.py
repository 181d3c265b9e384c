"""A trajectory as one picture: steps left to right, their texts underneath."""

from __future__ import annotations

import functools
import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from process_gen.trajectory.stages import Plan, Step, Trajectory

_PANEL = 224  # pixels across an image
_GAP = 12
_MARGIN = 24
_INK, _SOFT, _RULE = (32, 33, 36), (95, 99, 104), (218, 220, 224)
_STAGE_INK = {"plan": (26, 95, 180), "scene": (95, 99, 104), "inspect": (150, 90, 0), "refine": (165, 29, 45)}


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def draw_trajectory(trajectory: Trajectory) -> Image.Image:
    """Draws the drafts, the corrections and what was said of them."""
    columns = [_column(step, index, len(trajectory.steps)) for index, step in enumerate(trajectory.steps)]
    title = _wrapped(trajectory.prompt, sum(c.width for c in columns) + _MARGIN * (len(columns) - 1), 20)
    head = _MARGIN + 28 * len(title) + 14
    width = sum(column.width for column in columns) + _MARGIN * (len(columns) + 1)
    sheet = Image.new("RGB", (width, head + max(c.height for c in columns) + _MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for row, line in enumerate(title):
        pen.text((_MARGIN, _MARGIN + 28 * row), line, _INK, _font(20))
    left = _MARGIN
    for index, column in enumerate(columns):
        if index:
            pen.line((left - _MARGIN // 2, head, left - _MARGIN // 2, sheet.height - _MARGIN), _RULE)
        sheet.paste(column, (left, head))
        left += column.width + _MARGIN
    return sheet


def _column(step: Step, index: int, steps: int) -> Image.Image:
    """One step: its images side by side, its texts below."""
    right = step.draft.image_ok and step.draft.before_weight > 0
    panels = [("draft" if right else "draft, wrong", step.sketch)]
    panels += [("refined" if turn.image_ok else "refined, wrong", turn.image) for turn in step.refines]
    width = _PANEL * len(panels) + _GAP * (len(panels) - 1)
    lines: list[tuple[str, tuple[int, int, int], int]] = []
    for name, text in _said(step):
        lines.append((name, _STAGE_INK[name], 12))
        lines += [(line, _INK, 14) for line in _wrapped(text, width, 14)]
        lines.append(("", _INK, 6))
    top = 24 + 18 + _PANEL + 12
    column = Image.new("RGB", (width, top + sum(size + 5 for _, _, size in lines)), "white")
    pen = ImageDraw.Draw(column)
    pen.text((0, 0), f"step {index + 1} of {steps}", _INK, _font(15))
    for place, (caption, image) in enumerate(panels):
        left = place * (_PANEL + _GAP)
        bad = caption.endswith("wrong")
        pen.text((left, 23), caption, _STAGE_INK["refine"] if bad else _SOFT, _font(12))
        column.paste(_enlarged(image), (left, 42))
        frame = _STAGE_INK["refine"] if bad else _RULE
        pen.rectangle((left, 42, left + _PANEL - 1, 42 + _PANEL - 1), outline=frame, width=2)
    for text, ink, size in lines:
        pen.text((0, top), text, ink, _font(size))
        top += size + 5
    return column


def _said(step: Step) -> list[tuple[str, str]]:
    """The texts of a step in order, with the stage that each belongs to."""
    said = []
    for turn in step.turns:
        told = turn.instruction if turn.refines else turn.plan
        if isinstance(told, Plan):
            said += [("plan", told.instruction), ("scene", told.description)]
        elif turn.before is not None:
            said.append(
                ("refine" if turn.refines else "plan", told if isinstance(told, str) else turn.before)
            )
        if turn.after is not None:
            said.append(("inspect", turn.after))
    if not step.turns[-1].image_ok and step.turns[-1].after is None:
        said.append(("inspect", "(nobody notices)"))
    return said


def _enlarged(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image).resize((_PANEL, _PANEL), Image.Resampling.NEAREST)


def _wrapped(text: str, width: int, size: int) -> list[str]:
    """Breaks text so that each line fits the width."""
    letters = max(8, int(len(text) * width / max(_font(size).getlength(text), 1)))
    while True:
        lines = textwrap.wrap(text, letters) or [""]
        if letters <= 8 or all(_font(size).getlength(line) <= width for line in lines):
            return lines
        letters -= 1
