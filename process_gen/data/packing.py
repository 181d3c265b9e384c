"""Trajectories into rows of turn slots, in an order that a checkpoint restores exactly.

Every row of the global batch is a stream of its own, with its own share of each epoch. A row holds several
trajectories one after the other. A few rows stay open at a time; a trajectory goes where it wastes the least,
and a row is emitted when it is full, or when it is the fullest and nothing fits any more. The state of a
stream is its position and the positions that its open rows hold: small, JSON, and enough to fill the same
rows again, on whichever host holds that row then.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import grain
import numpy as np
from absl import logging

from process_gen.data.encode import BadTrajectory, TooLong
from process_gen.trajectory.batch import PAD_ID, PROMPT_FIELDS, blank
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Trajectory

Arrays = dict[str, np.ndarray]
_LONG_WHILE = 1000
"""After so many overlong trajectories in a row, and three epochs, none is expected to fit."""
LOGGED_NAMES = 20
"""How many left-out trajectories are named one by one in the log."""


class TooManyBadTrajectories(RuntimeError):
    """More trajectories were bad than the policy allows."""


def allowance(trajectories: int) -> float:
    """The share of a data set that may be bad: a thousandth; of small ones ten, but no more than half."""
    return max(0.001, min(10 / max(trajectories, 1), 0.5))


def budget_of_part(part: int, trajectories: int) -> float:
    """The share of a bucket that may be bad: as many as of the whole data set, at most nine tenths of it."""
    return min(allowance(trajectories) * trajectories / max(part, 1), 0.9)


@dataclasses.dataclass(frozen=True)
class Policy:
    """What to do with trajectories that cannot be used.

    Attributes:
      bad: `fail` at the first one (unreadable, or a text longer than its slot),
        or `skip` it, count it and name it in the log.
      budget: the share of trajectories that `skip` may leave out.
      overlong: the same choice for trajectories of more turns than a row holds;
        these are no error of the data and have no budget.
    """

    bad: Literal["fail", "skip"] = "fail"
    budget: float = 0.001
    overlong: Literal["fail", "skip"] = "skip"

    def __post_init__(self):
        for field in ("bad", "overlong"):
            if getattr(self, field) not in ("fail", "skip"):
                raise ValueError(f"policy.{field} must be 'fail' or 'skip', got {getattr(self, field)!r}")


@dataclasses.dataclass
class _OpenRow:
    """A row that is being filled: its trajectories and their positions in the stream."""

    positions: list[int] = dataclasses.field(default_factory=list)
    parts: list[Arrays] = dataclasses.field(default_factory=list)
    turns: int = 0

    def add(self, position: int, part: Arrays) -> None:
        self.positions.append(position)
        self.parts.append(part)
        self.turns += len(part["present"])


class PackedBatches(grain.IterDataset):
    """A Grain dataset of batches of packed rows: the fields of a `Batch`, as dicts of arrays."""

    def __init__(
        self,
        streams: Mapping[int, grain.MapDataset],
        encode: Callable[[Trajectory], Arrays],
        layout: Layout,
        open_rows: int,
        policy: Policy,
        identity: Mapping[str, str],
        epoch: int,
    ):
        """Args:
        streams: row of the global batch -> the trajectories that it reads, with random access. A batch
          has these rows, in ascending order; those whose stream has ended are empty.
        encode: makes the arrays of a trajectory (`encode.encode_trajectory`).
        layout: sizes of a row.
        open_rows: how many rows each stream fills at a time; with more of them fewer slots stay empty.
        policy: what to do with trajectories that cannot be used.
        identity: of source, order, batch and layout; the state of a loader with another one is refused.
        epoch: trajectories of a stream in one pass, the measure of the policy's budget.
        """
        super().__init__()
        if open_rows < 1:
            raise ValueError(f"open_rows must be at least 1, got {open_rows}")
        self.streams = {row: streams[row] for row in sorted(streams)}
        self.encode, self.layout, self.open_rows = encode, layout, open_rows
        self.policy, self.identity, self.epoch = policy, dict(identity), epoch

    def __iter__(self) -> PackedBatchesIterator:
        return PackedBatchesIterator(self)


class PackedBatchesIterator(grain.DatasetIterator):
    """Iterates over batches; see the module's docstring for its state."""

    def __init__(self, dataset: PackedBatches):
        super().__init__()
        self._dataset = dataset
        self._rows = {row: _RowStream(dataset, stream) for row, stream in dataset.streams.items()}
        for row in self._rows.values():
            row.siblings = tuple(self._rows.values())

    def __next__(self) -> Arrays:
        rows = [row.next() for row in self._rows.values()]
        first = next((row for row in rows if row is not None), None)
        if first is None:
            raise StopIteration
        empty = {name: np.full_like(value, blank(name)) for name, value in first.items()}
        return {name: np.stack([(empty if row is None else row)[name] for row in rows]) for name in first}

    def get_state(self) -> dict[str, Any]:
        """`rows` (row of the global batch -> its state) and `identity`; all hosts together have every row."""
        rows = {str(index): row.get_state() for index, row in self._rows.items()}
        return {"rows": rows, "identity": dict(self._dataset.identity)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues where `state` was taken; it may hold more rows than this host reads.

        Raises:
          ValueError: the state belongs to another data set, seed, batch size or layout.
        """
        if not isinstance(state["rows"], Mapping):
            raise ValueError(
                "the saved loader state is of an earlier version, in which the order of the trajectories "
                "depended on the number of hosts, so it cannot be continued exactly: finish the run with "
                "that version, or start another workdir from its weights"
            )
        check_identity(state["identity"], self._dataset.identity)
        for index, row in self._rows.items():
            row.set_state(state["rows"][str(index)])


class _RowStream:
    """One row of the batch: packs its own stream of trajectories.

    `siblings` are the streams of this host, which share the budget for bad trajectories.
    """

    def __init__(self, dataset: PackedBatches, stream: grain.MapDataset):
        self._dataset, self._stream = dataset, stream
        self._position = self._skipped = self._overlong = self._in_vain = self._longest = 0
        self._rows = [_OpenRow() for _ in range(dataset.open_rows)]
        self.siblings: tuple[_RowStream, ...] = (self,)

    def next(self) -> Arrays | None:
        """The next full row, None where the stream has ended."""
        while self._position < len(self._stream):
            position, self._position = self._position, self._position + 1
            part = self._read(position)
            if part is None:
                continue
            row = self._place(position, part)
            if row is not None:
                return row
        fullest = max(range(len(self._rows)), key=lambda index: self._rows[index].turns)
        return self._emit(fullest) if self._rows[fullest].turns else None

    def get_state(self) -> dict[str, Any]:
        width = self._dataset.layout.trajectories
        return {
            "position": self._position,
            "skipped": self._skipped,
            "overlong": self._overlong,
            "open": [row.positions + [-1] * (width - len(row.positions)) for row in self._rows],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._position = state["position"]
        self._skipped, self._overlong = state["skipped"], state["overlong"]
        self._rows = [_OpenRow() for _ in range(self._dataset.open_rows)]
        for row, positions in zip(self._rows, state["open"], strict=True):
            for position in positions:
                if position >= 0:
                    row.add(position, self._read_again(position))

    def _read_again(self, position: int) -> Arrays:
        """The arrays of a trajectory that a row held when it was saved, whatever the policy says."""
        try:
            return self._dataset.encode(self._stream[position])
        except BadTrajectory as error:
            raise BadTrajectory(
                f"{error} - it was good when this run was saved, and stands in a row that was half filled "
                "then: bring it back to go on exactly, or start another workdir from the weights"
            ) from error

    def _read(self, position: int) -> Arrays | None:
        """Returns the arrays of one trajectory, None where the policy leaves it out."""
        policy = self._dataset.policy
        try:
            part = self._dataset.encode(self._stream[position])
            self._in_vain = 0
            return part
        except TooLong as error:
            if policy.overlong == "fail":
                raise
            self._overlong += 1
            _log_left_out("overlong", self._overlong, error)
            self._in_vain, self._longest = self._in_vain + 1, max(self._longest, error.turns)
            if self._in_vain >= _LONG_WHILE + 3 * self._dataset.epoch:
                raise TooManyBadTrajectories(
                    f"the last {self._in_vain} trajectories all have more than the {error.slots} turns of a "
                    f"row, the longest one {self._longest}: set config.layout.turns={self._longest} or more"
                ) from error
        except BadTrajectory as error:
            if policy.bad == "fail":
                raise
            self._skipped += 1
            _log_left_out("bad", self._skipped, error)
            skipped = sum(row._skipped for row in self.siblings)
            seen = sum(max(row._position, self._dataset.epoch) for row in self.siblings)
            if skipped > policy.budget * seen:
                raise TooManyBadTrajectories(
                    f"{skipped} bad trajectories among {seen}, the policy allows {policy.budget:.2%}; "
                    f"the last one: {error}"
                ) from error
        return None

    def _place(self, position: int, part: Arrays) -> Arrays | None:
        """Adds a trajectory to an open row; returns the row that this completes, if any."""
        layout, rows = self._dataset.layout, self._rows
        turns = len(part["present"])
        fitting = [
            index
            for index, row in enumerate(rows)
            if row.turns + turns <= layout.turns and len(row.positions) < layout.trajectories
        ]
        if not fitting:
            fullest = max(range(len(rows)), key=lambda index: rows[index].turns)
            done = self._emit(fullest)
            rows[fullest].add(position, part)
            return done

        def merit(index: int) -> tuple[bool, bool, int]:
            """Best is to fill a row up, worst to close one with empty slots; else the fuller the better."""
            row = rows[index]
            fills = row.turns + turns == layout.turns
            return fills, len(row.positions) + 1 < layout.trajectories, row.turns

        best = max(fitting, key=merit)
        rows[best].add(position, part)
        full = rows[best].turns == layout.turns or len(rows[best].positions) == layout.trajectories
        return self._emit(best) if full else None

    def _emit(self, index: int) -> Arrays:
        row, self._rows[index] = self._rows[index], _OpenRow()
        return join_row(row.parts, self._dataset.layout)


def join_row(parts: list[Arrays], layout: Layout) -> Arrays:
    """Returns one row that holds `parts` one after the other, and nothing behind them."""
    row: Arrays = {}
    for name, first in parts[0].items():
        if name in PROMPT_FIELDS:
            row[name] = np.full((layout.trajectories, *first.shape), blank(name), first.dtype)
            row[name][: len(parts)] = [part[name] for part in parts]
            continue
        row[name] = np.full((layout.turns, *first.shape[1:]), blank(name), first.dtype)
        start = 0
        for index, part in enumerate(parts):
            stop = start + len(part["present"])
            row[name][start:stop] = index if name == "prompt_index" else part[name]
            start = stop
    return row


@dataclasses.dataclass(frozen=True)
class PackingReport:
    """What share of the tokens of a row is useful, and what the others are.

    Attributes:
      rows: rows that were looked at.
      tokens: of one row.
      turns_per_trajectory: mean.
      unused: tokens that hold nothing by cause, as shares of all tokens of the rows.
    """

    rows: int
    tokens: int
    turns_per_trajectory: float
    unused: dict[str, float]

    @property
    def useful(self) -> float:
        """The share of tokens that hold something."""
        return 1.0 - sum(self.unused.values())

    def __str__(self) -> str:
        causes = ", ".join(f"{cause} {share:.1%}" for cause, share in self.unused.items() if share >= 0.0005)
        return (
            f"packing: {self.useful:.1%} of {self.tokens:,} tokens of a row useful; "
            f"{causes or 'none unused'}; {self.turns_per_trajectory:.2f} turns per trajectory "
            f"({self.rows} rows)"
        )

    def table(self) -> str:
        """By cause, for a terminal; the last line is `useful NN.N%`."""
        lines = [*self.unused.items(), ("useful", self.useful)]
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}} {share:6.1%}" for name, share in lines)


def packing_stats(batches: Iterable[Arrays], layout: Layout) -> PackingReport:
    """Measures what the tokens of some batches hold, as the loader yields them.

    Raises:
      ValueError: there are none.
    """
    count: collections.Counter[str] = collections.Counter()
    turn = sum(s.tokens for s in layout.turn_segments)
    for batch in batches:
        present = batch["present"]
        count["rows"] += len(present)
        count["turns"] += int(present.sum())
        count["trajectories"] += int(batch["is_first"].sum())
        count["empty turn slots"] += turn * int((~present).sum())
        noised = sum(s.tokens for s in layout.turn_segments if s.kind == "noised")
        count["flow targets of nothing"] += noised * int((present & (batch["target"] < 0)).sum())
        used = (batch["prompt_tokens"] != PAD_ID).any(-1)
        if "has_prompt_image" in batch:
            used |= batch["has_prompt_image"]
        count["empty prompt slots"] += layout.prompt_slots * int((~used).sum())
        _count_prompts(count, batch, layout, used)
        for slot, there in (("before", present), ("after", present)):
            _count_texts(count, batch[f"{slot}_tokens"], there, f"text {slot} the image")
    if not count["rows"]:
        raise ValueError("no batches to measure the packing of")
    total = count["rows"] * layout.row_tokens
    return PackingReport(
        rows=count["rows"],
        tokens=layout.row_tokens,
        turns_per_trajectory=count["turns"] / max(count["trajectories"], 1),
        unused={cause: count[cause] / total for cause in _CAUSES},
    )


_CAUSES = (
    "empty turn slots",
    "empty prompt slots",
    "absent prompt texts",
    "absent prompt images",
    "absent prompt instructions",
    "absent text before the image",
    "absent text after the image",
    "padding in prompts",
    "padding in text before the image",
    "padding in text after the image",
    "flow targets of nothing",
)


def _count_prompts(count: collections.Counter, batch: Arrays, layout: Layout, used: np.ndarray) -> None:
    """Adds what the slots of prompts that are there hold nothing in."""
    _count_texts(count, batch["prompt_tokens"], used, "prompts", "prompt texts")
    if "has_prompt_image" in batch:
        state = sum(s.tokens for s in layout.prompt_parts["prompt_image"])
        count["absent prompt images"] += state * int((used & ~batch["has_prompt_image"]).sum())
    if "instruction_tokens" in batch:
        _count_texts(count, batch["instruction_tokens"], used, "prompts", "prompt instructions")


def _count_texts(
    count: collections.Counter, tokens: np.ndarray, there: np.ndarray, name: str, absent: str = ""
) -> None:
    """Adds absent texts, and padding inside those that are there, of slots that are `there`."""
    filled = (tokens != PAD_ID).sum(-1)
    missing = there & (filled == 0)
    count[f"absent {absent or name}"] += tokens.shape[-1] * int(missing.sum())
    count[f"padding in {name}"] += int((tokens.shape[-1] - filled)[there & ~missing].sum())


def check_identity(saved: Mapping[str, str], current: Mapping[str, str]) -> None:
    """Raises ValueError where a saved state depends on other things than there are now."""
    differences = [
        f"{key} was {saved.get(key)}, is {current.get(key)}"
        for key in sorted({*saved, *current})
        if saved.get(key) != current.get(key)
    ]
    if differences:
        raise ValueError("the saved loader state belongs to other data: " + "; ".join(differences))


def _log_left_out(kind: str, count: int, error: BadTrajectory) -> None:
    if count <= LOGGED_NAMES:
        logging.warning("left out %s trajectory (%d so far): %s", kind, count, error)
    elif count % 1000 == 0:
        logging.warning("left out %d %s trajectories so far", count, kind)
