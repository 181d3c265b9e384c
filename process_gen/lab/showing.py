"""A row as a table: every token by its stage, what it sees, is taught and by which loss, and its value."""

from __future__ import annotations

import collections
import dataclasses
import html
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from process_gen.data.buckets import size_of
from process_gen.distributed import offload, sharding
from process_gen.experiment import builders
from process_gen.lab.setting import Setting
from process_gen.losses.anatomy import HEADERS, Anatomy, anatomy, lines
from process_gen.losses.registry import Term
from process_gen.losses.rows import Row
from process_gen.losses.stock import DECISIONS
from process_gen.models import partition
from process_gen.models.autoencoder import random_weights
from process_gen.models.outputs import Outputs
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
"""Of stages; grey is the prompt."""


@dataclasses.dataclass(frozen=True)
class Shown:
    """A packed row, as it is trained; a notebook shows it in colours, `print` as text.

    Attributes:
      batch: of one row, B = 1.
      trajectories: of it, one after the other.
      rows: of the table, for each of them.
      headers: of the table.
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
    """A row of a batch that a training of `config` reads.

    Args:
      config: of a training.
      row: of the batch.
      number: of the batch; 0 is the first.
      state: as `train` returns it; then each token shows its losses under the averaged parameters, with
        nothing dropped from the context. Of the tokens of an image that is their mean.

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
        places = list(_places(one))
        tokens = (
            dataclasses.replace(token, losses={name: w for name, (w, _) in counted.get(at, {}).items()})
            for token, at in zip(one.tokens, places, strict=True)
        )
        one = dataclasses.replace(one, tokens=tuple(tokens))
        rows = list(lines(one, setting.tokenizer))
        if state is not None:
            values = (", ".join(f"{v:.3g}" for _, v in counted.get(at, {}).values()) for at in places)
            rows = [(*line, value) for line, value in zip(rows, values, strict=True)]
        shown.append((one, rows))
    trajectories, tables = zip(*shown, strict=True) if shown else ((), ())
    return Shown(found, trajectories, tables, (*HEADERS, "value") if state is not None else HEADERS)


Place = tuple[int, str, int]
"""A turn slot, what of it (`before`, `after`, `noised`, or what closes something), and which of those."""


def _places(one: Anatomy) -> Iterator[Place]:
    """Where a loss counts, for each token."""
    first, seen = min((t.turn for t in one.tokens if t.turn >= 0), default=0), collections.Counter()
    for token in one.tokens:
        name, _, copy = token.segment.partition("_")
        closes = token.what == "close"
        if token.turn < 0:
            yield first, "prompt_end" if closes and token.target >= 0 else "", 0
        elif name in ("before", "after"):
            yield token.turn, name, seen[token.turn, name]
            seen[token.turn, name] += 1
        elif name == "noised":
            yield token.turn, "noised_end" if closes else name if token.what == "latents" else "", int(copy)
        else:
            yield token.turn, "image_end" if closes and token.target >= 0 else "", 0


def _counted(
    setting: Setting, whole: Batch, row: int, state: TrainState | None
) -> dict[Place, dict[str, tuple[float, float]]]:
    """Weight and value of each loss that counts at a place of a row; without a state, weights alone."""
    program, batch = setting.placed({name: x for name, x in vars(whole).items() if x is not None})
    recipe, key = program.undisturbed, jax.random.key(setting.config.seed)
    losses = recipe.losses

    def of(outputs: Outputs, batch: Batch) -> dict[str, Term]:
        taught = outputs.labels(labels(batch, recipe.model.ids))
        outputs = outputs.with_nll(taught)
        return {one.name: losses.term(one, outputs, batch, taught, key) for one in losses.rows}

    def weights_of(networks: Any, batch: Batch) -> dict[str, jax.Array]:
        # Weights do not depend on the autoencoder or the model, so none of it is ever computed.
        given = Given(jnp.zeros((), jnp.int32), random_weights(recipe.model.config, key), networks)
        terms = of(scoring.seen_blank(recipe, given, batch, key), batch)
        return {name: (term.weights, term.weights) for name, term in terms.items()}

    def values_of(params: Any, given: Given, batch: Batch) -> dict[str, tuple[jax.Array, jax.Array]]:
        terms = of(scoring.seen(recipe, params, given, batch, key), batch)
        return {name: (term.values, term.weights) for name, term in terms.items()}

    over = partition.over(setting.mesh, sharding.ACTIVATION_RULES)
    if state is None:
        networks = scoring.init_networks(losses.networks, {}, key)
        found = jax.jit(over(weights_of))(networks, batch)
    else:
        state = setting.with_networks(state)
        found = jax.jit(over(values_of))(offload.on_devices(state.average), state.given, batch)
    counted: dict[Place, dict[str, tuple[float, float]]] = {}
    for one in losses.rows:
        values, weights = (np.asarray(x[row], np.float32) for x in jax.device_get(found[one.name]))
        for at, value, weight in _spread(one, values, weights, recipe.model.layout):
            if (there := weight > 0).any():
                mean = float(np.average(value[there], weights=weight[there]))
                counted.setdefault(at, {})[one.name] = float(weight[there].mean()), mean
    return counted


def _spread(
    one: Row, values: np.ndarray, weights: np.ndarray, layout: Layout
) -> Iterator[tuple[Place, np.ndarray, np.ndarray]]:
    """Values [S, ...] of a row of the table by the places that they belong to, as their shape tells."""
    shape, text = values.shape[1:], "after" if one.stage == Stage.INSPECT else "before"
    sizes = dict(
        prompt_end=1, before=layout.before, after=layout.after, image_end=1, noised_end=layout.copies
    )
    decides = one.loss == "decision_cross_entropy"
    names = DECISIONS[Stage(one.stage)] if decides else (text,)
    for turn in range(len(values)):
        if decides or (one.stage != Stage.SKETCH and shape == (sizes[text],)):
            # Without labels of `noised_end`, which come last, there are fewer.
            places = [(name, i) for name in names for i in range(sizes[name])][: shape[0]]
        elif shape and shape[0] <= layout.copies:
            places = [("noised", i) for i in range(shape[0])]
        else:  # of a turn as a whole
            yield (turn, "noised", 0), values[turn], weights[turn]
            continue
        for index, (name, i) in enumerate(places):
            yield (turn, name, i), values[turn, index], weights[turn, index]
