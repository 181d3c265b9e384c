from __future__ import annotations

import numpy as np

from process_gen.scenes import sample_request, teach
from process_gen.scenes.picture import _said, draw_trajectory
from process_gen.trajectory.stages import Plan, Trajectory, Turn, draft, refinement

RED, BLUE = (np.full((32, 32, 3), colour, np.uint8) for colour in ((200, 0, 0), (0, 0, 200)))


def shown(image: np.ndarray, colour: np.ndarray) -> int:
    """Pixels of a picture that have the colour of an image."""
    return int((image == colour[0, 0]).all(-1).sum())


def test_every_image_of_a_step_is_shown_however_often_it_is_corrected():
    turns = (
        draft(RED, Plan("add it", "it"), "no", image_ok=False),
        refinement(RED, "once", "still no", image_ok=False),
        refinement(BLUE, "twice"),
        Turn(RED, "<ins>garbled", "fine"),
        draft(BLUE, image_ok=False),
    )
    picture = np.asarray(draw_trajectory(Trajectory("a circle", turns)))
    inside = 220**2  # a frame covers the edges
    assert (
        inside * 3 <= shown(picture, RED) <= 224**2 * 3 and inside * 2 <= shown(picture, BLUE) <= 224**2 * 2
    )
    first, second, third = Trajectory("a circle", turns).steps
    said = [("plan", "add it"), ("scene", "it"), ("inspect", "no"), ("refine", "once")]
    assert _said(first) == [*said, ("inspect", "still no"), ("refine", "twice")]
    assert _said(second) == [("plan", "<ins>garbled"), ("inspect", "fine")]
    assert _said(third) == [("inspect", "(nobody notices)")]


def test_lessons_are_drawn():
    rng = np.random.default_rng(0)
    for _ in range(3):
        lesson = teach(sample_request(rng, "default", "four_objects"), rng, "default", wrong=0.6, slip=0.3)
        picture = draw_trajectory(lesson)
        assert picture.width > 224 * len(lesson.turns) and picture.height > 224
