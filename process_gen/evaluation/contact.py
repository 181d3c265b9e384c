"""One picture of several trajectories, for the metric writers of a training run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from process_gen.trajectory.sampled import SampledTrajectory

RIGHT, WRONG, PAPER = (26, 127, 75), (180, 35, 24), (255, 255, 255)
_BORDER, _GAP = 4, 8


def contact_sheet(trajectories: Sequence[SampledTrajectory], side: int = 96) -> np.ndarray:
    """One row per trajectory: every draft and correction, in order.

    The last image has a border, green where the verdict is right and red where
    it is wrong.

    Args:
      trajectories: all images of one size.
      side: pixels of a shown image, about.

    Returns:
      [H, W, 3] uint8.
    """
    rows = [[turn.image for turn in trajectory.turns] for trajectory in trajectories]
    factor = max(1, side // max(rows[0][0].shape[:2]))
    height, width = (factor * n for n in rows[0][0].shape[:2])
    pitch_y, pitch_x = height + 2 * _BORDER + _GAP, width + 2 * _BORDER + _GAP
    sheet = np.full((pitch_y * len(rows), pitch_x * max(map(len, rows)), 3), PAPER, np.uint8)
    for r, (states, trajectory) in enumerate(zip(rows, trajectories, strict=True)):
        for c, image in enumerate(states):
            y, x = r * pitch_y + _GAP // 2, c * pitch_x + _GAP // 2
            if c == len(states) - 1 and trajectory.verdict is not None:
                frame = RIGHT if trajectory.verdict["ok"] else WRONG
                sheet[y : y + height + 2 * _BORDER, x : x + width + 2 * _BORDER] = frame
            shown = image.repeat(factor, 0).repeat(factor, 1)
            sheet[y + _BORDER : y + _BORDER + height, x + _BORDER : x + _BORDER + width] = shown
    return sheet
