from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import ImageColor

from process_gen.reports import images
from process_gen.reports import strip as strips
from process_gen.reports.strip import contact_sheet, sheet, strip
from process_gen.trajectory.markup import Plan
from process_gen.trajectory.stages import Step, Trajectory, Turn, draft, refinement
from tests.reports import samples


def contains(canvas, image: np.ndarray) -> bool:
    """Whether the image stands in the canvas, each pixel as a square of 7 x 7."""
    pixels, shown = np.asarray(canvas), np.asarray(images.fitted(image, strips.SIDE))
    height, width = shown.shape[:2]
    corners = np.argwhere((pixels[: -height + 1, : -width + 1] == shown[0, 0]).all(-1))
    return any((pixels[y : y + height, x : x + width] == shown).all() for y, x in corners)


def marks(step, stopped=None) -> tuple[str, ...]:
    return strips._marks(step, stopped)


def lines(step) -> list[str]:
    return [line.text for turn in step.turns for line in strips._lines(turn)]


def test_small_images_grow_by_whole_factors_and_big_ones_shrink():
    small = samples.image(1, 32, 16)
    shown = images.fitted(small, 224)
    assert shown.size == (112, 224)
    assert np.array_equal(np.asarray(shown), np.repeat(np.repeat(small, 7, 0), 7, 1))
    assert images.fitted(samples.image(1, 512, 1024), 224).size == (224, 112)
    assert images.fitted(samples.image(1, 128, 128), 224).size == (224, 224)
    assert images.fitted(samples.image(1, 1, 4000), 224).size == (224, 1)


def test_a_strip_shows_drafts_and_corrections():
    for trajectory in (samples.process(), samples.corrected_twice()):
        canvas = strip(trajectory)
        assert all(contains(canvas, turn.image) for turn in trajectory.turns)
        assert not contains(canvas, samples.image(99))


def test_every_turn_says_its_texts_by_their_stage():
    first, second = samples.corrected_twice().steps
    assert lines(first) == ["draw a ring"]
    assert lines(second) == [
        "add a star",
        "Inspect: the star is red",
        "Refine: make the star blue",
        "Inspect: the ring is gone",
        "Refine: draw the ring again",
        "Inspect: now all is there",
    ]
    assert lines(samples.process().steps[2]) == [
        "<ins>add a",
        "<ins> is never closed",
        "Inspect: odd",
        "Refine: <refine>move",
        "<refine> is never closed",
    ]


def test_a_step_of_many_corrections_takes_rows():
    turns = [Turn(samples.image(0)), *(samples.fix(samples.image(i), "x") for i in range(1, 10))]
    trajectory = samples.process(turns=tuple(turns))
    canvas = strip(trajectory)
    assert canvas.width <= strips.LONGEST_ROW + 2 * strips.MARGIN
    assert all(contains(canvas, turn.image) for turn in turns)
    first, second = strips._panels(trajectory.steps[0], 1, "cap")
    assert [contains(first, turn.image) for turn in turns] == [True] * 7 + [False] * 3
    assert [contains(second, turn.image) for turn in turns] == [False] * 7 + [True] * 3


def test_marks_say_how_a_step_went():
    first, second, third = samples.process().steps
    assert marks(first) == ("accepted",)
    assert marks(second) == ("refined",)
    assert marks(third, "model") == ("refined", "malformed", "stopped")
    assert marks(first, "cap") == ("accepted", "limit")
    assert marks(Step(Turn(samples.image(1), "x"))) == ("accepted", "malformed")
    wrong = Turn(samples.image(1), image_ok=False)
    assert marks(Step(wrong)) == ("unnoticed error",)
    assert marks(Step(wrong, (refinement(samples.image(2), "fix"),))) == ("refined",)
    assert marks(Step(wrong, (refinement(samples.image(2), "fix", image_ok=False),))) == ("unnoticed error",)
    assert marks(samples.corrected_twice().steps[1]) == ("refined",)


def test_a_teacher_trajectory_has_a_strip_too():
    turns = (
        draft(samples.image(1), Plan("draw", "one")),
        draft(samples.image(2), Plan("add", "two"), "wrong", image_ok=False),
        refinement(samples.image(3), "fix"),
    )
    canvas = strip(Trajectory("two shapes", turns), verdict="right")
    assert all(contains(canvas, samples.image(seed)) for seed in (1, 2, 3))


def test_the_verdict_takes_a_line_and_many_steps_take_rows():
    assert strip(samples.process(), "wrong").height > strip(samples.process()).height
    many = samples.process(turns=samples.process().turns * 5)
    assert strip(many).width <= strips.LONGEST_ROW + 2 * strips.MARGIN
    assert strip(many).height > 2 * strip(samples.process()).height


@pytest.mark.parametrize(
    "text", [*samples.HOSTILE, "", "x" * 20_000, "word " * 20_000, "日本語 العربية", "\n\n"]
)
def test_any_text_can_be_drawn(text):
    canvas = strip(samples.hostile(text), text)
    # Two texts of a plan, and of a correction, and an inspection of either, each three lines at most.
    assert canvas.width < 1200 and canvas.height < 780


def test_a_trajectory_without_any_text_can_be_drawn():
    assert contains(strip(samples.process(prompt="", turns=(Turn(samples.image(1)),))), samples.image(1))


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
    canvas = sheet(pictures, ["a caption"] * 5, columns=3)
    assert all(contains(canvas, picture) for picture in pictures)
    assert sheet(pictures, [""] * 5, columns=8).width > sheet(pictures, [""] * 5, columns=2).width


def test_a_sheet_has_a_caption_for_each_picture():
    with pytest.raises(ValueError):
        sheet([samples.image(0)], ["x"] * 2, columns=2)


def test_the_contact_sheet_frames_final_images_by_verdict():
    def framed(trajectory, colour):
        pixels = np.asarray(contact_sheet([trajectory] * 2))
        return (pixels == ImageColor.getrgb(colour)).all(-1).any()

    wrong = samples.process(turns=tuple(Turn(samples.image(i) // 2) for i in range(3)))
    right = dataclasses.replace(wrong, verdict={"ok": True})
    assert framed(right, strips.RIGHT) and not framed(right, strips.WRONG)
    assert framed(wrong, strips.WRONG) and not framed(wrong, strips.RIGHT)
    longer = samples.process(turns=wrong.turns * 2)
    assert contact_sheet([longer, wrong]).size == contact_sheet([wrong, longer]).size
    assert contact_sheet([longer]).width > contact_sheet([wrong]).width


def test_only_images_are_drawn():
    with pytest.raises(ValueError, match="uint8"):
        sheet([np.zeros((4, 4, 3), np.float32)], ["x"], columns=1)
