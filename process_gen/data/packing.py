"""Packs trajectories into rows of turn slots, in an order that a checkpoint restores exactly.

Every row index of the global batch has a stream of its own, with its own share of each epoch. A packed row
holds several trajectories one after the other. Packing is best fit over a few open rows: a trajectory goes
into the open row that it fills best, and a row is emitted when it is full. A trajectory that fits no open row
has the fullest one emitted, and takes its place. The state of a stream is its position and the positions of
the trajectories in its open rows, as JSON. A restore reads those again, on whichever host then has the row.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import grain
import numpy as np
from absl import logging

from process_gen.data.errors import BadTrajectory, TooLong, TooManyBadTrajectories, check_budget
from process_gen.trajectory.batch import EXTRA, PAD_ID, PROMPT_FIELDS, fill_value
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Trajectory

Arrays = dict[str, np.ndarray]
OpenRow = dict[int, Arrays]
"""A row that is being filled: position in the stream + `_PARTS` * part number -> arrays of that part."""
SPLIT = "longer than a row"
"""Key in the identity of a loader that splits such trajectories; loaders without the key drop them."""
_PARTS = 2**48
_LONG_WHILE = 1000
"""So many overlong trajectories in succession, on top of three epochs of them, end the run with an error."""
LOGGED_NAMES = 20
"""How many left-out trajectories are named one by one in the log."""


@dataclasses.dataclass(frozen=True)
class Policy:
    """What to do with trajectories that cannot be used.

    Attributes:
      bad: `fail` at the first one (unreadable, or a text longer than its slot),
        or `skip` it, count it and name it in the log.
      budget: the share of trajectories that `skip` may leave out. Those with more turns than a
        row are no error of the data: they do not count.
      long: `split` those into parts where the context allows it (`encode.split_trajectory`),
        or `drop` them. What is dropped is counted and named in the log.
    """

    bad: Literal["fail", "skip"] = "fail"
    budget: float = 0.001
    long: Literal["split", "drop"] = "split"


@dataclasses.dataclass(eq=False)
class PackedBatches(grain.IterDataset):
    """A Grain dataset of batches of packed rows: the fields of a `Batch`, as dicts of arrays.

    Attributes:
      streams: row of the global batch, ascending -> the trajectories that it reads, with random access. A
        batch has these rows; those whose stream has ended are empty.
      encode: makes the arrays of the parts of a trajectory (`encode.encode_parts`).
      identity: what the batches depend on (source, order, batch, rows), by name, in words. `set_state`
        refuses a state with another identity.
      epoch: trajectories of a stream in one pass; the policy's budget is a share of at least so many.
      layout, open_rows, policy, threads: as `loader.make_loader` has them.
    """

    streams: Mapping[int, grain.MapDataset]
    encode: Callable[[Trajectory], list[Arrays]]
    layout: Layout
    open_rows: int
    policy: Policy
    identity: dict[str, str]
    epoch: int
    threads: int

    def __post_init__(self):
        super().__init__()

    def __iter__(self) -> PackedBatchesIterator:
        return PackedBatchesIterator(self)


class PackedBatchesIterator(grain.DatasetIterator):
    """Iterates over batches; see the module's docstring for its state."""

    def __init__(self, dataset: PackedBatches):
        super().__init__()
        self._dataset = dataset
        self._pool = concurrent.futures.ThreadPoolExecutor(dataset.threads) if dataset.threads else None
        self._rows: dict[int, _RowStream] = {}
        for row, stream in dataset.streams.items():
            self._rows[row] = _RowStream(dataset, stream, self._pool, self._rows)

    def __next__(self) -> Arrays:
        rows = [row.next() for row in self._rows.values()]
        first = next((row for row in rows if row is not None), None)
        if first is None:
            raise StopIteration
        empty = {name: np.full_like(value, fill_value(name)) for name, value in first.items()}
        batch = {name: np.stack([(empty if row is None else row)[name] for row in rows]) for name in first}
        extra = {name.removeprefix(EXTRA): batch.pop(name) for name in [*batch] if name.startswith(EXTRA)}
        return batch | ({"extra": extra} if extra else {})

    def close(self) -> None:
        """Stops the threads and cancels pending reads; may be called twice."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def get_state(self) -> dict[str, Any]:
        """`rows` (row of the global batch -> its state; those of this host) and `identity`, as JSON."""
        rows = {str(index): row.get_state() for index, row in self._rows.items()}
        return {"rows": rows, "identity": dict(self._dataset.identity)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues where `state` was taken; it may hold more rows than this host reads.

        Raises ValueError: the state belongs to another data set, seed, batch size or layout.
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
    """Packs the stream of trajectories of one row of the batch.

    `rows` are all row streams of this host, itself included; they share the budget for bad trajectories.
    """

    def __init__(
        self,
        dataset: PackedBatches,
        stream: grain.MapDataset,
        pool: concurrent.futures.Executor | None,
        rows: Mapping[int, _RowStream],
    ):
        self._dataset, self._stream, self._pool, self._siblings = dataset, stream, pool, rows
        self._position = self._skipped = self._overlong = self._streak = self._longest = 0
        self._parts: list[Arrays] = []
        self._part = 0  # the next part, of the trajectory at the position
        self._rows: list[OpenRow] = [{} for _ in range(dataset.open_rows)]
        self._ahead: dict[int, concurrent.futures.Future] = {}

    def next(self) -> Arrays | None:
        """Returns the next full row; then the rows still open, fullest first; then None."""
        while self._position < len(self._stream):
            if not self._part:
                self._parts = self._read(self._position)
            row = None
            if self._parts:
                row = self._place(self._position + self._part * _PARTS, self._parts[self._part])
            self._part += 1
            if self._part >= len(self._parts):
                self._position, self._part = self._position + 1, 0
            if row is not None:
                return row
        fullest = max(self._rows, key=_turns)
        return self._emit(fullest) if fullest else None

    def get_state(self) -> dict[str, Any]:
        width = self._dataset.layout.trajectories
        return {
            "position": self._position,
            "part": self._part,
            "skipped": self._skipped,
            "overlong": self._overlong,
            "open": [[*row] + [-1] * (width - len(row)) for row in self._rows],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._position, self._part = state["position"], state.get("part", 0)
        self._parts = self._read_again(self._position) if self._part else []
        self._skipped, self._overlong = state["skipped"], state["overlong"]
        for row, positions in zip(self._rows, state["open"], strict=True):
            row.clear()
            for key in (key for key in positions if key >= 0):
                part, position = divmod(key, _PARTS)
                row[key] = self._read_again(position)[part]

    def _load(self, position: int) -> list[Arrays]:
        return self._dataset.encode(self._stream[position])

    def _load_ahead(self, position: int) -> list[Arrays]:
        """`_load`, on the threads if there are any, which then begin with the next positions too."""
        if self._pool is None:
            return self._load(position)
        window = 1 + -(-2 * self._dataset.threads // len(self._siblings))  # two for each thread, by row
        wanted = range(position, min(position + window, len(self._stream)))
        for other in [other for other in self._ahead if other not in wanted]:
            self._ahead.pop(other).cancel()
        for other in wanted:
            if other not in self._ahead:
                self._ahead[other] = self._pool.submit(self._load, other)
        return self._ahead.pop(position).result()

    def _read_again(self, position: int) -> list[Arrays]:
        """Returns the parts of a trajectory of the saved state; a bad one raises even with `bad=skip`."""
        try:
            return self._load(position)
        except BadTrajectory as error:
            raise BadTrajectory(
                f"{error} - it was good when this run was saved, and stands in a row that was half filled "
                "then: bring it back to go on exactly, or start another workdir from the weights"
            ) from error

    def _read(self, position: int) -> list[Arrays]:
        """Returns the parts of one trajectory, none where the policy leaves it out."""
        policy = self._dataset.policy
        try:
            parts = self._load_ahead(position)
            self._streak = 0
            return parts
        except TooLong as error:
            self._overlong += 1
            _log_left_out("overlong", self._overlong, error)
            self._streak, self._longest = self._streak + 1, max(self._longest, error.turns)
            if self._streak >= _LONG_WHILE + 3 * self._dataset.epoch:
                raise TooManyBadTrajectories(
                    f"the last {self._streak} trajectories all have more than the {error.slots} turns of a "
                    f"row, the longest one {self._longest}: set config.layout.turns={self._longest} or more"
                ) from error
        except BadTrajectory as error:
            if policy.bad == "fail":
                raise
            self._skipped += 1
            _log_left_out("bad", self._skipped, error)
            rows = self._siblings.values()
            skipped = sum(row._skipped for row in rows)
            seen = sum(max(row._position, self._dataset.epoch) for row in rows)
            check_budget(skipped, seen, policy.budget, error)
        return []

    def _place(self, key: int, part: Arrays) -> Arrays | None:
        """Adds a trajectory, or a part, to an open row; returns the row that this completes, if any."""
        layout, turns = self._dataset.layout, len(part["present"])
        fitting = [
            row
            for row in self._rows
            if _turns(row) + turns <= layout.turns and len(row) < layout.trajectories
        ]

        def merit(row: OpenRow) -> tuple[bool, bool, int]:
            """Best: fills the row; worst: its last allowed trajectory, slots left empty; else by fullness."""
            return _turns(row) + turns == layout.turns, len(row) + 1 < layout.trajectories, _turns(row)

        best = max(fitting, key=merit) if fitting else max(self._rows, key=_turns)
        done = None if fitting else self._emit(best)
        best[key] = part
        full = _turns(best) == layout.turns or len(best) == layout.trajectories
        return self._emit(best) if fitting and full else done

    def _emit(self, row: OpenRow) -> Arrays:
        parts = [*row.values()]
        row.clear()
        return join_row(parts, self._dataset.layout)


def _turns(row: OpenRow) -> int:
    return sum(len(part["present"]) for part in row.values())


def join_row(parts: list[Arrays], layout: Layout) -> Arrays:
    """Returns a row that holds `parts` one after the other: prompt fields [R, ...], all others [S, ...]."""
    row: Arrays = {}
    for name in parts[0]:
        of_prompt = name in PROMPT_FIELDS
        held = (np.stack if of_prompt else np.concatenate)([part[name] for part in parts])
        slots = layout.trajectories if of_prompt else layout.turns
        row[name] = np.full((slots, *held.shape[1:]), fill_value(name), held.dtype)
        row[name][: len(held)] = held
    turns = [len(part["present"]) for part in parts]
    row["prompt_index"][: sum(turns)] = np.repeat(np.arange(len(parts)), turns)
    return row


@dataclasses.dataclass(frozen=True)
class PackingReport:
    """How much of some packed rows is useful, and what the rest is.

    Attributes:
      rows: how many were measured.
      tokens: of one row, used or not.
      turns_per_trajectory: mean.
      unused: cause -> tokens that hold nothing for that cause, as a share of all tokens of the rows.
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
    """Measures how many tokens of some batches, as the loader yields them, are unused, and why.

    Raises ValueError: there are none.
    """
    rows = turns = trajectories = 0
    unused: collections.Counter[str] = collections.Counter()
    turn = sum(s.tokens for s in layout.turn_segments)
    noised = sum(s.tokens for s in layout.turn_segments if s.kind == "noised")
    state = sum(s.tokens for s in layout.turn_segments if s.kind == "clean")
    for batch in batches:
        present = batch["present"]
        rows += len(present)
        turns += int(present.sum())
        trajectories += int(batch["is_first"].sum())
        used = (batch["prompt_tokens"] != PAD_ID).any(-1)
        if "has_prompt_image" in batch:
            used |= batch["has_prompt_image"]
        unused["empty turn slots"] += turn * int((~present).sum())
        unused["empty prompt slots"] += layout.prompt_tokens * int((~used).sum())
        for slot, there, text, place in (
            ("prompt", used, "prompt texts", "prompts"),
            ("instruction", used, "prompt instructions", "prompts"),
            ("before", present, "text before the image", "text before the image"),
            ("after", present, "text after the image", "text after the image"),
        ):
            if f"{slot}_tokens" in batch:
                filled = (batch[f"{slot}_tokens"] != PAD_ID).sum(-1)
                size, missing = getattr(layout, slot), there & (filled == 0)
                unused[f"absent {text}"] += size * int(missing.sum())
                unused[f"padding in {place}"] += int((size - filled)[there & ~missing].sum())
        if "has_prompt_image" in batch:
            shown = sum(s.tokens for s in layout.prompt_parts["prompt_image"])
            unused["absent prompt images"] += shown * int((used & ~batch["has_prompt_image"]).sum())
        unused["absent images"] += state * int((present & ~batch["has_image"]).sum())
        unused["flow targets of nothing"] += noised * int((present & (batch["target"] < 0)).sum())
    if not rows:
        raise ValueError("no batches to measure the packing of")
    shares = {cause: count / (rows * layout.row_tokens) for cause, count in unused.items()}
    return PackingReport(rows, layout.row_tokens, turns / max(trajectories, 1), shares)


def check_identity(saved: Mapping[str, str], current: Mapping[str, str]) -> None:
    """Raises ValueError where the identity of a saved loader state differs from the current one."""
    if found := differences(saved, current):
        known = {key.rpartition(": ")[2] for key in saved}
        hint = (
            "; it was saved when nothing was split: set --config.data.on_long=drop to go on as it was"
            if SPLIT not in known and any(key.endswith(SPLIT) for key in current)
            else ""
        )
        raise ValueError(f"the saved loader state belongs to other data: {found}{hint}")


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """How two descriptions of data differ, in words; empty where they do not."""
    return "; ".join(
        f"{key} was {saved.get(key)}, is {current.get(key)}"
        for key in {**saved, **current}
        if saved.get(key) != current.get(key)
    )


def _log_left_out(kind: str, count: int, error: BadTrajectory) -> None:
    if count <= LOGGED_NAMES:
        logging.warning("left out %s trajectory (%d so far): %s", kind, count, error)
    elif count % 1000 == 0:
        logging.warning("left out %d %s trajectories so far", count, kind)
