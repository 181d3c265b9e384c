from __future__ import annotations

import numpy as np
import pytest

from process_gen.reports import images
from process_gen.reports import strip as strips
from process_gen.reports.strip import sheet, strip
from process_gen.trajectory.sampled import SampledStep
from process_gen.trajectory.stages import Plan, Refinement, Step, Trajectory
from tests.reports import samples


def contains(canvas, image: np.ndarray) -> bool:
    """Whether the image stands in the canvas, each pixel as a square of 7 x 7."""
    pixels, shown = np.asarray(canvas), np.asarray(images.fitted(image, strips.SIDE))
    height, width = shown.shape[:2]
    corners = np.argwhere((pixels[: -height + 1, : -width + 1] == shown[0, 0]).all(-1))
    return any((pixels[y : y + height, x : x + width] == shown).all() for y, x in corners)


def marks(step, stopped=None) -> tuple[str, ...]:
    return strips._panel(step, stopped).marks


def test_small_images_grow_by_whole_factors_and_big_ones_shrink():
    small = samples.image(1, 32, 16)
    shown = images.fitted(small, 224)
    assert shown.size == (112, 224)
    assert np.array_equal(np.asarray(shown), np.repeat(np.repeat(small, 7, 0), 7, 1))
    assert images.fitted(samples.image(1, 512, 1024), 224).size == (224, 112)
    assert images.fitted(samples.image(1, 128, 128), 224).size == (224, 224)
    assert images.fitted(samples.image(1, 1, 4000), 224).size == (224, 1)


def test_a_strip_shows_drafts_and_corrections():
    trajectory = samples.process()
    canvas = strip(trajectory)
    for step in trajectory.steps:
        assert contains(canvas, step.sketch)
        assert step.refined is None or contains(canvas, step.refined)
    assert not contains(canvas, samples.image(99))


def test_marks_say_how_a_step_went():
    first, second, third = samples.process().steps
    assert marks(first) == ("accepted",)
    assert marks(second) == ("refined",)
    assert marks(third, "model") == ("refined", "malformed", "stopped")
    assert marks(first, "cap") == ("accepted", "step limit")
    assert marks(SampledStep("x")) == ("no image", "malformed")
    assert marks(Step(samples.image(1), sketch_ok=False)) == ("unnoticed error",)


def test_a_teacher_trajectory_has_a_strip_too():
    steps = (
        Step(samples.image(1), Plan("draw", "one")),
        Step(
            samples.image(2),
            Plan("add", "two"),
            "wrong",
            Refinement("fix", samples.image(3)),
            sketch_ok=False,
        ),
    )
    canvas = strip(Trajectory("two shapes", steps), verdict="right")
    assert all(contains(canvas, samples.image(seed)) for seed in (1, 2, 3))


def test_the_verdict_takes_a_line_and_many_steps_take_rows():
    assert strip(samples.process(), "wrong").height > strip(samples.process()).height
    many = samples.process(steps=samples.process().steps * 5)
    assert strip(many).width <= strips.LONGEST_ROW + 2 * strips.MARGIN
    assert strip(many).height > 2 * strip(samples.process()).height


@pytest.mark.parametrize(
    "text", [*samples.HOSTILE, "", "x" * 20_000, "word " * 20_000, "日本語 العربية", "\n\n"]
)
def test_any_text_can_be_drawn(text):
    canvas = strip(samples.hostile(text), text)
    assert canvas.width < 1200 and canvas.height < 720


def test_no_steps_and_no_images_can_be_drawn():
    assert strip(samples.process(steps=())).height > 0
    assert strip(samples.process(steps=(SampledStep("x"),))).height > 0


@pytest.mark.parametrize("text", ["a red circle left of a blue square", "x" * 300, "a " * 300])
def test_wrapped_lines_fit(text):
    font = strips._font(15)
    lines = strips._wrap(text, font, 224, most=3)
    assert 1 <= len(lines) <= 3
    assert all(font.getlength(line) <= 224 for line in lines)
    if lines[-1].endswith("…"):
        assert text.replace(" ", "").startswith("".join(lines)[:-1].replace(" ", ""))
    else:
        assert " ".join(lines) == text


def test_a_sheet_is_a_grid():
    pictures = [samples.image(seed) for seed in range(5)]
    canvas = sheet(pictures, ["a caption"] * 5, columns=3, side=224)
    assert all(contains(canvas, picture) for picture in pictures)
    assert sheet(pictures, [""] * 5, columns=8).width > sheet(pictures, [""] * 5, columns=2).width


@pytest.mark.parametrize(
    ("pictures", "captions", "columns", "message"),
    [(1, 2, 1, "1 pictures with 2"), (1, 1, 0, "at least 1"), (0, 0, 1, "at least one picture")],
)
def test_sheets_refuse_what_does_not_fit(pictures, captions, columns, message):
    with pytest.raises(ValueError, match=message):
        sheet([samples.image(0)] * pictures, ["x"] * captions, columns)


def test_only_images_are_drawn():
    with pytest.raises(ValueError, match="uint8"):
        sheet([np.zeros((4, 4, 3), np.float32)], ["x"])
