"""A row as a table: every token by its stage, what it sees, what it is taught and by which loss."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from process_gen.data.buckets import size_of
from process_gen.experiment import builders
from process_gen.lab.setting import Setting
from process_gen.losses.anatomy import HEADERS, Anatomy, anatomy, lines
from process_gen.reports.images import data_url
from process_gen.reports.table import table
from process_gen.trajectory.batch import Batch

COLOURS = {
    "": "#6b7280", "plan": "#2563a8", "sketch": "#4c9a6b", "inspect": "#d98324", "refine": "#b8434e"
}  # fmt: skip
"""Of stages; grey is the prompt."""


@dataclasses.dataclass(frozen=True)
class Shown:
    """A packed row, as it is trained; a notebook shows it in colours, `print` as text.

    Attributes:
      batch: of one row, B = 1.
      trajectories: of it, one after the other.
      rows: of the table, for each of them.
    """

    batch: Batch
    trajectories: tuple[Anatomy, ...]
    rows: tuple[Sequence[tuple[Any, ...]], ...]

    def __str__(self) -> str:
        return "\n\n".join(table(list(rows), HEADERS) for rows in self.rows)

    def _repr_html_(self) -> str:
        legend = " ".join(
            f'<span style="color:{colour}">&#9632; {stage or "prompt"}</span>'
            for stage, colour in COLOURS.items()
        )
        return f"<div>{legend}</div>" + self._images() + "".join(map(self._table, range(len(self.rows))))

    def _images(self) -> str:
        """The images of the turns, framed in the colour of their stage."""
        shown = []
        for turn in np.flatnonzero(self.batch.present[0]):
            colour = COLOURS["refine" if self.batch.refines[0, turn] else "sketch"]
            shown.append(
                f'<figure style="display:inline-block;margin:4px;text-align:center">'
                f'<img src="{data_url(self.batch.image[0, turn], 128)[0]}" width="64" '
                f'style="border:3px solid {colour};image-rendering:pixelated">'
                f"<figcaption>turn {turn}</figcaption></figure>"
            )
        return f"<div>{''.join(shown)}</div>"

    def _table(self, number: int) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in HEADERS)
        body = []
        for token, row in zip(self.trajectories[number].tokens, self.rows[number], strict=True):
            cells = "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row)
            body.append(f'<tr style="color:{COLOURS[token.stage]}">{cells}</tr>')
        return (
            f"<details {'open' if number == 0 else ''}><summary>trajectory {number}</summary>"
            f"<table><tr>{head}</tr>{''.join(body)}</table></details>"
        )


def batch(config: ConfigDict, row: int = 0, number: int = 0) -> Shown:
    """A row of a batch that a training of `config` reads.

    Args:
      config: of a training.
      row: of the batch.
      number: of the batch; 0 is the first.

    Raises:
      ConfigError: the config cannot work, or there is no such row.
    """
    if not 0 <= row < config.train.batch_size:
        raise builders.ConfigError(
            f"row {row} is not in a batch of {config.train.batch_size} (config.train.batch_size)"
        )
    setting = Setting.of(config)
    found = jax.tree.map(lambda x: x[row : row + 1], setting.batch(config.seed, number))
    losses, ids = builders.build_losses(config), setting.model.ids
    layout = setting.layouts[size_of(found.image)]
    prompts = np.unique(found.prompt_index[found.present])
    trajectories = tuple(anatomy(layout, found, losses, ids, int(prompt)) for prompt in prompts)
    return Shown(found, trajectories, tuple(list(lines(x, setting.tokenizer)) for x in trajectories))
