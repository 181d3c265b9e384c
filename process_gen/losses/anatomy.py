"""Lists the tokens of a packed row as they are trained: positions, visible tokens, targets and losses.

For people: `python -m process_gen.data check` prints the first trajectory of a data set this way. Training
does not use it. Conditioning dropout, which differs from step to step, is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from process_gen.losses.stock import DECISIONS, of_stage
from process_gen.losses.table import LossTable
from process_gen.trajectory.batch import PAD_ID, Batch
from process_gen.trajectory.controls import ControlIds, labels
from process_gen.trajectory.layout import Layout, Segment
from process_gen.trajectory.stages import Stage
from process_gen.trajectory.visibility import seen_parts

Place = tuple[int, str, int]
"""Where losses count a token: turn slot, name of a hidden state (or `noised`, of latents), index in that."""


@dataclasses.dataclass(frozen=True)
class Token:
    """A token; or all latent or all ViT tokens of an image, as they are alike.

    Attributes:
      turn: its slot in the row; -1 in a prompt.
      segment: of the layout: `prompt`, `before`, `noised_0`, `image`, `image_vit`, `after`, ...
      stage: of its segment; empty in a prompt.
      what: `word`, `open`, `close`, `latents` or `vit`.
      id: in the vocabulary; -1 for latents and ViT tokens.
      count: how many tokens it stands for.
      position: its rotary position.
      target: the id that it is trained to predict; -1 for none.
      losses: names of the rows of the loss table that count it, each with its weight there.
      place: where losses may count it; None for nowhere.
    """

    turn: int
    segment: str
    stage: str
    what: str
    id: int
    count: int
    position: int
    target: int
    losses: dict[str, float]
    place: Place | None


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """The N tokens of one trajectory of a row, in logical order.

    `sees` is [N, N] bool, whether the token of a row sees that of a column. An entry for the latent or ViT
    tokens of an image sees itself.
    """

    tokens: tuple[Token, ...]
    sees: np.ndarray


def anatomy(layout: Layout, batch: Batch, table: LossTable, ids: ControlIds, prompt: int = 0) -> Anatomy:
    """Lists the tokens of one trajectory.

    Args:
      batch: one row, B = 1.
      table: the losses; `text_cross_entropy`, `decision_cross_entropy` and `flow_mse` are shown.
      prompt: index of the trajectory in the row.
    """
    row = jax.tree.map(lambda x: np.asarray(x)[0], batch)
    taught = {name: np.asarray(x)[0] for name, x in labels(batch, ids).items()}
    there = {stage.value: np.asarray(of_stage(batch, stage))[0] for stage in Stage}
    turns = np.flatnonzero(row.present & (row.prompt_index == prompt)).tolist()
    writer = _Writer(layout, row, prompt, turns[0] if turns else -1, table, taught, there, ids)
    for turn, segments in ((-1, layout.prompt_segments), *((turn, layout.turn_segments) for turn in turns)):
        for segment in segments:
            if writer.holds(segment, turn):
                writer.add(segment, turn)
    return Anatomy(tuple(writer.tokens), _sees(layout, row, writer.tokens))


@dataclasses.dataclass
class _Writer:
    """Collects the tokens of the trajectory of a prompt, whose first turn is `first`, and their positions."""

    layout: Layout
    row: Batch
    prompt: int
    first: int
    table: LossTable
    taught: dict
    there: dict
    ids: ControlIds
    tokens: list[Token] = dataclasses.field(default_factory=list)
    position: int = 0

    def add(self, segment: Segment, turn: int) -> None:
        """Adds a segment of a turn, or with turn -1 one of the prompt."""
        stage, end = self._stage(segment.name, turn), self._end(segment, turn)

        def append(what: str, id_: int, count: int, place: Place | None = None) -> None:
            target, losses = self._trained(*place, stage, what == "close") if place else (-1, {})
            self.tokens.append(
                Token(turn, segment.name, stage, what, id_, count, self.position, target, losses, place)
            )

        if segment.kind == "text":
            tokens = self._text(segment, turn)
            for index, token in enumerate(tokens):
                what = "close" if index == len(tokens) - 1 else "word" if index else "open"
                in_prompt = end if what == "close" else None
                append(what, token, 1, (turn, segment.name, index) if turn >= 0 else in_prompt)
                self.position += 1
        else:
            drawn = (turn, "noised", end[2]) if segment.kind == "noised" else None
            append("open", self.ids.vision_start, 1)
            append("vit" if segment.vit else "latents", -1, segment.vit or segment.latents, drawn)
            append("close", self.ids.vision_end, 1, end)
            self.position += segment.kind == "clean"

    def _end(self, segment: Segment, turn: int) -> Place | None:
        """The place of the token that closes an image, or that ends the prompt."""
        if turn < 0:
            last = [s for s in self.layout.prompt_segments if self.holds(s, -1)][-1]
            return (self.first, "prompt_end", 0) if segment is last else None
        if segment.kind == "noised":
            return turn, "noised_end", int(segment.name.removeprefix("noised_"))
        # Only the last image of a visual state predicts.
        last_image = segment.kind == "clean" and (segment.vit or not self.layout.vit_tokens)
        return (turn, "image_end", 0) if last_image else None

    def _text(self, segment: Segment, turn: int) -> list[int]:
        tokens = getattr(self.row, f"{segment.name}_tokens")[self.prompt if turn < 0 else turn]
        return tokens[tokens != PAD_ID].tolist()

    def holds(self, segment: Segment, turn: int) -> bool:
        """Whether a segment of a turn, or with turn -1 of the prompt, is there."""
        if segment.kind == "text":
            return bool(self._text(segment, turn))
        if turn < 0:
            return self.row.has_prompt_image[self.prompt]
        return self.row.target[turn] >= 0 if segment.kind == "noised" else self.row.has_image[turn]

    def _stage(self, segment: str, turn: int) -> str:
        if turn < 0:
            return ""
        if segment == "after":
            return Stage.INSPECT.value
        if self.row.refines[turn]:
            return Stage.REFINE.value
        return (Stage.PLAN if segment == "before" else Stage.SKETCH).value

    def _trained(
        self, turn: int, name: str, index: int, stage: str, closes: bool
    ) -> tuple[int, dict[str, float]]:
        """The target at a place, and the rows of the table that count it with their weights."""
        if name == "noised":
            return -1, self._rows("flow_mse", turn, float(self.row.image_weight[turn]), *Stage)
        if name not in self.taught:
            return -1, {}
        target = int(np.atleast_1d(self.taught[name][self.prompt if name == "prompt_end" else turn])[index])
        if not closes:
            weight = float(getattr(self.row, f"{name}_weight")[turn])
            return target, self._rows("text_cross_entropy", turn, weight, stage)
        stages = [stage for stage, names in DECISIONS.items() if name in names and target != PAD_ID]
        return target, self._rows("decision_cross_entropy", turn, 1.0, *stages)

    def _rows(self, loss: str, turn: int, weight: float, *stages: str) -> dict[str, float]:
        """The table's rows of a loss and some stages that count a turn, with its weight."""
        rows = [row for row in self.table.rows if row.loss == loss and row.stage in stages]
        return {row.name: weight for row in rows if weight and self.there[row.stage][turn]}


def _sees(layout: Layout, row: Batch, tokens: Sequence[Token]) -> np.ndarray:
    """[N, N] bool, which tokens (columns) each token (row) sees."""
    kinds = {s.name: s.kind for s in (*layout.prompt_segments, *layout.turn_segments)}
    step = np.cumsum(row.present & ~row.refines)
    sees = np.zeros((len(tokens), len(tokens)), bool)
    for i, query in enumerate(tokens):
        now = max(query.turn, 0)
        parts = seen_parts(layout.context, step[:now], row.refines[:now], step[now], row.refines[now])
        parts = {name: np.asarray(part) for name, part in parts.items()}
        for j, key in enumerate(tokens):
            if (key.turn, key.segment) == (query.turn, query.segment):
                sees[i, j] = j <= i or kinds[query.segment] != "text"
            elif kinds[key.segment] == "noised" or j > i:
                continue
            elif key.turn in (-1, query.turn):
                sees[i, j] = True
            else:
                sees[i, j] = parts[key.segment.removesuffix("_vit")][key.turn]
    return sees


HEADERS = ("", "of", "segment", "stage", "token", "position", "sees", "predicts", "losses")


def lines(found: Anatomy, tokenizer: Any) -> Iterator[tuple[Any, ...]]:
    """Rows of a table with `HEADERS`, one for each token."""
    controls = ("end_of_text", "im_start", "im_end", "vision_start", "vision_end")
    names = {getattr(tokenizer, name): f"<{name}>" for name in controls}

    def word(token: int) -> str:
        return "" if token < 0 else names.get(token) or repr(tokenizer.decode([token]))[1:-1]

    for number, token in enumerate(found.tokens):
        text = f"{token.count} {token.what}" if token.id < 0 else word(token.id)
        losses = (f"{name} x {weight:g}" if weight != 1 else name for name, weight in token.losses.items())
        where = "prompt" if token.turn < 0 else f"turn {token.turn}"
        sees = _ranges(found.sees[number])
        predicts = word(token.target), ", ".join(losses)
        yield number, where, token.segment, token.stage, text, token.position, sees, *predicts


def _ranges(seen: np.ndarray) -> str:
    """The indices of what is True, as `0-4 7`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], seen.astype(np.int8), [0]])))
    pairs = zip(edges[::2], edges[1::2] - 1, strict=True)
    return " ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in pairs)
