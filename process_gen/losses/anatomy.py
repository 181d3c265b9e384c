"""A packed row as it is trained: what every token is, where it stands, what it sees and what it is taught.

For people: `python -m process_gen.data check` prints the first trajectory of a data set this way. Nothing
here is read by the training; conditioning dropout, which differs from step to step, is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from process_gen.losses.stock import of_stage
from process_gen.losses.table import LossTable
from process_gen.trajectory.batch import PAD_ID, Batch
from process_gen.trajectory.controls import ControlIds, labels
from process_gen.trajectory.layout import Layout, Segment
from process_gen.trajectory.stages import Stage
from process_gen.trajectory.visibility import seen_parts


@dataclasses.dataclass(frozen=True)
class Token:
    """A token, or the latent or ViT tokens of an image together, which are all alike.

    Attributes:
      turn: its slot in the row; -1 in a prompt.
      segment: of the layout: `prompt`, `before`, `noised_0`, `image`, `image_vit`, `after`, ...
      stage: that its segment belongs to; empty in a prompt.
      what: `word`, `open`, `close`, `latents` or `vit`.
      id: in the vocabulary; -1 for what is no word.
      count: how many tokens it stands for.
      position: rotary.
      target: the id that it predicts; -1 for none.
      losses: rows of the loss table that it counts in, with its weight there.
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


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """The tokens of one trajectory of a row, in logical order.

    Attributes:
      tokens: N of them.
      sees: [N, N] bool, whether the token of a row sees that of a column. What stands for the
        latent or ViT tokens of an image sees itself.
    """

    tokens: tuple[Token, ...]
    sees: np.ndarray


def anatomy(layout: Layout, batch: Batch, table: LossTable, ids: ControlIds, prompt: int = 0) -> Anatomy:
    """What is trained of one trajectory.

    Args:
      layout: of the batch.
      batch: of one row, B = 1.
      table: losses. Those named `text_cross_entropy`, `decision_cross_entropy` and `flow_mse` are shown.
      ids: of the tokenizer.
      prompt: which of the trajectories of the row.
    """
    row = jax.tree.map(lambda x: np.asarray(x)[0], batch)
    taught = {name: np.asarray(x)[0] for name, x in labels(batch, ids).items()}
    there = {stage.value: np.asarray(of_stage(batch, stage))[0] for stage in Stage}
    turns = np.flatnonzero(row.present & (row.prompt_index == prompt))
    writer = _Writer(row, table, taught, there, (ids.vision_start, ids.vision_end), bool(layout.vit_tokens))
    for segment in layout.prompt_segments:
        writer.add(segment, prompt, -1, first=turns[0] if len(turns) else -1)
    for turn in turns:
        for segment in layout.turn_segments:
            writer.add(segment, turn, turn)
    kinds = {s.name: s.kind for s in (*layout.prompt_segments, *layout.turn_segments)}
    return Anatomy(tuple(writer.tokens), _sees(layout, row, writer.tokens, kinds))


class _Writer:
    """Collects the tokens of a trajectory and counts their positions."""

    def __init__(
        self, row: Batch, table: LossTable, taught: dict, there: dict, edges: tuple[int, int], vit: bool
    ):
        self.row, self.table, self.taught, self.there, self.edges = row, table, taught, there, edges
        self._vit = vit
        self.tokens: list[Token] = []
        self._position = 0

    def add(self, segment: Segment, slot: int, turn: int, first: int = -1) -> None:
        """Adds a segment of a turn, or one of the prompt of the trajectory that begins with turn `first`."""
        if segment.kind == "text":
            self._add_text(segment, slot, turn, first)
        elif self._holds(segment, slot, turn):
            self._add_image(segment, slot, turn, first)

    def _holds(self, segment: Segment, slot: int, turn: int) -> bool:
        if turn < 0:
            return bool(self.row.has_prompt_image[slot])
        return bool(self.row.target[slot] >= 0 if segment.kind == "noised" else self.row.has_image[slot])

    def _add_text(self, segment: Segment, slot: int, turn: int, first: int) -> None:
        tokens = getattr(self.row, f"{segment.name}_tokens")[slot]
        tokens = tokens[tokens != PAD_ID]
        stage = self._stage(segment.name, turn)
        for place, token in enumerate(tokens):
            last = place == len(tokens) - 1
            target, losses = -1, {}
            if turn >= 0:
                target = int(self.taught[segment.name][slot, place])
                weight = float(getattr(self.row, f"{segment.name}_weight")[slot])
                losses = (
                    self._decisions(segment.name, turn, target) if last else self._words(stage, turn, weight)
                )
            elif last and self._ends_prompt(segment.name, slot):
                target = int(self.taught["prompt_end"][slot])
                losses = self._decisions("prompt_end", first, target)
            what = "close" if last else "word" if place else "open"
            self._append(turn, segment.name, stage, what, int(token), 1, target, losses)
            self._position += 1

    def _add_image(self, segment: Segment, slot: int, turn: int, first: int) -> None:
        stage, losses, target = self._stage(segment.name, turn), {}, -1
        state = self._last_of_state(segment)
        if turn >= 0 and segment.kind == "clean" and state:
            target = int(self.taught["image_end"][slot])
            losses = self._decisions("image_end", turn, target)
        elif turn < 0 and state and self._ends_prompt(segment.name, slot):
            target = int(self.taught["prompt_end"][slot])
            losses = self._decisions("prompt_end", first, target)
        drawn = (
            self._rows("flow_mse", turn, float(self.row.image_weight[slot]))
            if segment.kind == "noised"
            else {}
        )
        what, count = ("vit", segment.vit) if segment.vit else ("latents", segment.latents)
        self._append(turn, segment.name, stage, "open", self.edges[0], 1, -1, {})
        self._append(turn, segment.name, stage, what, -1, count, -1, drawn)
        self._append(turn, segment.name, stage, "close", self.edges[1], 1, target, losses)
        self._position += segment.kind == "clean"

    def _append(self, turn, segment, stage, what, id_, count, target, losses) -> None:
        self.tokens.append(Token(int(turn), segment, stage, what, id_, count, self._position, target, losses))

    def _stage(self, segment: str, turn: int) -> str:
        if turn < 0:
            return ""
        if segment == "after":
            return Stage.INSPECT.value
        if self.row.refines[turn]:
            return Stage.REFINE.value
        return (Stage.PLAN if segment == "before" else Stage.SKETCH).value

    def _ends_prompt(self, segment: str, slot: int) -> bool:
        """Whether a segment is the last one that the prompt has."""
        if segment == "instruction":
            return True
        instruction = self.row.instruction_tokens
        if instruction is not None and (instruction[slot] != PAD_ID).any():
            return False
        return segment != "prompt" or self.row.has_prompt_image is None or not self.row.has_prompt_image[slot]

    def _last_of_state(self, segment: Segment) -> bool:
        """Whether an image segment is the last of its visual state, whose closing token predicts."""
        return bool(segment.vit) or not self._vit

    def _words(self, stage: str, turn: int, weight: float) -> dict[str, float]:
        return self._rows("text_cross_entropy", turn, weight, stage)

    def _decisions(self, name: str, turn: int, target: int) -> dict[str, float]:
        """The rows of decisions in which a closing token counts."""
        if target == PAD_ID:
            return {}
        stages = {
            "prompt_end": (Stage.PLAN,),
            "before": (Stage.PLAN, Stage.REFINE),
            "image_end": (Stage.SKETCH, Stage.REFINE),
            "after": (Stage.INSPECT,),
        }[name]
        return {
            k: v
            for stage in stages
            for k, v in self._rows("decision_cross_entropy", turn, 1.0, stage).items()
        }

    def _rows(self, loss: str, turn: int, weight: float, stage: str = "") -> dict[str, float]:
        """Rows of a loss that a turn counts in, of all stages or one, with its weight."""
        rows = [row for row in self.table.rows if row.loss == loss and stage in ("", row.stage)]
        return {row.name: weight for row in rows if weight and self.there[row.stage][turn]}


def _sees(layout: Layout, row: Batch, tokens: Sequence[Token], kinds: dict[str, str]) -> np.ndarray:
    """[N, N] bool."""
    step = np.cumsum(row.present & ~row.refines)
    sees = np.zeros((len(tokens), len(tokens)), bool)
    for i, query in enumerate(tokens):
        parts = _seen(layout, row, step, query.turn)
        for j, key in enumerate(tokens):
            if (key.turn, key.segment) == (query.turn, query.segment):
                sees[i, j] = j <= i or kinds[query.segment] != "text"
            elif kinds[key.segment] == "noised" or j > i:
                continue
            elif key.turn in (-1, query.turn):
                sees[i, j] = True
            else:
                sees[i, j] = parts[key.turn, key.segment.removesuffix("_vit")]
    return sees


def _seen(layout: Layout, row: Batch, step: np.ndarray, turn: int) -> dict[tuple[int, str], bool]:
    """What a turn sees of earlier ones, by turn and part."""
    if turn <= 0:
        return {}
    earlier = slice(0, turn)
    found = seen_parts(layout.context, step[earlier], row.refines[earlier], step[turn], row.refines[turn])
    return {(i, name): bool(seen[i]) for name, seen in found.items() for i in range(turn)}


def lines(found: Anatomy, tokenizer: Any) -> Iterator[tuple[Any, ...]]:
    """Rows of a table: number, turn, segment, stage, token, position, what it sees, target, losses."""
    controls = ("end_of_text", "im_start", "im_end", "vision_start", "vision_end")
    names = {getattr(tokenizer, name): f"<{name}>" for name in controls}

    def word(token: int) -> str:
        return "" if token < 0 else names.get(token) or repr(tokenizer.decode([token]))[1:-1]

    for number, token in enumerate(found.tokens):
        text = f"{token.count} {token.what}" if token.id < 0 else word(token.id)
        target = word(token.target)
        losses = ", ".join(
            f"{name} x {weight:g}" if weight != 1 else name for name, weight in token.losses.items()
        )
        where = "prompt" if token.turn < 0 else f"turn {token.turn}"
        yield (
            number,
            where,
            token.segment,
            token.stage,
            text,
            token.position,
            _ranges(found.sees[number]),
            target,
            losses,
        )


HEADERS = ("", "of", "segment", "stage", "token", "position", "sees", "predicts", "losses")


def _ranges(seen: np.ndarray) -> str:
    """Numbers as `0-4 7`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], seen.astype(np.int8), [0]])))
    pairs = zip(edges[::2], edges[1::2] - 1, strict=True)
    return " ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in pairs)
