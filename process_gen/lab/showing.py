"""Shows a packed row as a table: each token's stage, what it attends to, its target and its losses."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from process_gen.data.buckets import size_of
from process_gen.distributed import offload
from process_gen.experiment import builders
from process_gen.lab.setting import Setting
from process_gen.losses.anatomy import HEADERS, Anatomy, Place, anatomy, lines
from process_gen.losses.rows import Row
from process_gen.losses.stock import DECISIONS
from process_gen.models.autoencoder import random_weights
from process_gen.reports.images import data_url
from process_gen.reports.table import table
from process_gen.training import scoring
from process_gen.training.scoring import Given
from process_gen.training.step import TrainState
from process_gen.trajectory.batch import Batch
from process_gen.trajectory.controls import labels
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Stage

COLOURS = {
    "": "#6b7280", "plan": "#2563a8", "sketch": "#4c9a6b", "inspect": "#d98324", "refine": "#b8434e"
}  # fmt: skip
"""Colour of each stage; the empty name is the prompt."""


@dataclasses.dataclass(frozen=True)
class Shown:
    """A packed training row; a notebook shows it in colours, `print` as text.

    `batch` is the row as a batch, B = 1. Each of its trajectories has a table with a row per token.
    """

    batch: Batch
    trajectories: tuple[Anatomy, ...]
    rows: tuple[Sequence[tuple[Any, ...]], ...]
    headers: tuple[str, ...]

    def __str__(self) -> str:
        return "\n\n".join(table(list(rows), self.headers) for rows in self.rows)

    def _repr_html_(self) -> str:
        legend = " ".join(
            f'<span style="color:{colour}">&#9632; {stage or "prompt"}</span>'
            for stage, colour in COLOURS.items()
        )
        return f"<div>{legend}</div>" + self._images() + "".join(map(self._table, range(len(self.rows))))

    def _images(self) -> str:
        """HTML of the image of every turn, framed in the colour of its stage."""
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
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.headers)
        body = []
        for token, row in zip(self.trajectories[number].tokens, self.rows[number], strict=True):
            cells = "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row)
            body.append(f'<tr style="color:{COLOURS[token.stage]}">{cells}</tr>')
        return (
            f"<details {'open' if number == 0 else ''}><summary>trajectory {number}</summary>"
            f"<table><tr>{head}</tr>{''.join(body)}</table></details>"
        )


def batch(config: ConfigDict, row: int = 0, number: int = 0, state: TrainState | None = None) -> Shown:
    """Shows a row of a batch that a training with `config` would read.

    Args:
      config: of a training.
      row: index of the row in the batch.
      number: index of the batch; 0 is the first.
      state: as `train` returns it. If given, each token shows its losses under the averaged parameters,
        without conditioning dropout or context noise; an image shows the mean over its tokens.

    Raises:
      ConfigError: the config cannot work, or there is no such row.
    """
    if not 0 <= row < config.train.batch_size:
        raise builders.ConfigError(
            f"row {row} is not in a batch of {config.train.batch_size} (config.train.batch_size)"
        )
    setting = Setting.of(config)
    whole = setting.batch(config.seed, number)
    found = jax.tree.map(lambda x: x[row : row + 1], whole)
    losses, ids = setting.program.recipe.losses, setting.model.ids
    layout = setting.layouts[size_of(found.image)]
    counted = _counted(setting, whole, row, state)
    shown = []
    for prompt in np.unique(found.prompt_index[found.present]):
        one = anatomy(layout, found, losses, ids, int(prompt))
        found_at = [counted.get(token.place, {}) for token in one.tokens]
        tokens = (
            dataclasses.replace(token, losses={name: w for name, (w, _) in there.items()})
            for token, there in zip(one.tokens, found_at, strict=True)
        )
        one = dataclasses.replace(one, tokens=tuple(tokens))
        rows = list(lines(one, setting.tokenizer))
        if state is not None:
            values = (", ".join(f"{v:.3g}" for _, v in there.values()) for there in found_at)
            rows = [(*line, value) for line, value in zip(rows, values, strict=True)]
        shown.append((one, rows))
    trajectories, tables = zip(*shown, strict=True) if shown else ((), ())
    return Shown(found, trajectories, tables, (*HEADERS, "value") if state is not None else HEADERS)


def _counted(
    setting: Setting, whole: Batch, row: int, state: TrainState | None
) -> dict[Place, dict[str, tuple[float, float]]]:
    """Finds the losses that count at each place of a row, with mean weight and mean value.

    Without a state only weights are computed, and stand in for the values.
    """
    program, batch = setting.placed({name: x for name, x in vars(whole).items() if x is not None})
    recipe, key = program.undisturbed, jax.random.key(setting.config.seed)
    losses = recipe.losses

    def of(params: Any, given: Given, batch: Batch) -> list[tuple[jax.Array, jax.Array]]:
        outputs = scoring.seen(recipe, params, given, batch, key)
        terms = losses.each(outputs, batch, labels(batch, recipe.model.ids), key)
        return [(term.weights if params is None else term.values, term.weights) for _, term in terms]

    def weights_of(networks: Any, batch: Batch) -> list[tuple[jax.Array, jax.Array]]:
        # Weights depend on neither model nor autoencoder, so XLA drops both as dead code.
        given = Given(jnp.zeros((), jnp.int32), random_weights(recipe.model.config, key), networks)
        return of(None, given, batch)

    if state is None:
        networks = scoring.init_networks(losses.networks, {}, key)
        found = program.jit(weights_of)(networks, batch)
    else:
        state = setting.with_networks(state)
        found = program.jit(of)(offload.on_devices(state.average), state.given, batch)
    counted: dict[Place, dict[str, tuple[float, float]]] = {}
    for one, arrays in zip(losses.rows, jax.device_get(found), strict=True):
        values, weights = (np.asarray(x[row], np.float32) for x in arrays)
        for at, value, weight in _spread(one, values, weights, recipe.model.layout):
            if (there := weight > 0).any():
                mean = float(np.average(value[there], weights=weight[there]))
                counted.setdefault(at, {})[one.name] = float(weight[there].mean()), mean
    return counted


def _spread(
    one: Row, values: np.ndarray, weights: np.ndarray, layout: Layout
) -> Iterator[tuple[Place, np.ndarray, np.ndarray]]:
    """Splits values and weights [S, ...] of a row of the loss table by place, which their shape tells."""
    shape, text = values.shape[1:], "after" if one.stage == Stage.INSPECT else "before"
    sizes = dict(
        prompt_end=1, before=layout.before, after=layout.after, image_end=1, noised_end=layout.copies
    )
    decides = one.loss == "decision_cross_entropy"
    names = DECISIONS[Stage(one.stage)] if decides else (text,)
    for turn in range(len(values)):
        if decides or (one.stage != Stage.SKETCH and shape == (sizes[text],)):
            # A batch without labels of `noised_end` has fewer values: those places come last.
            places = [(name, i) for name in names for i in range(sizes[name])][: shape[0]]
        elif shape and shape[0] <= layout.copies:
            places = [("noised", i) for i in range(shape[0])]
        else:  # one value per turn
            yield (turn, "noised", 0), values[turn], weights[turn]
            continue
        for index, (name, i) in enumerate(places):
            yield (turn, name, i), values[turn, index], weights[turn, index]
