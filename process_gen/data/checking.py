"""Examines a set of trajectories before a run: its contents, its errors, and the layout that it needs."""

from __future__ import annotations

import collections
import concurrent.futures
import concurrent.futures.process
import dataclasses
import hashlib
import io
import multiprocessing
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import tqdm
from absl import logging

from process_gen.common.images import UNREADABLE
from process_gen.data.encode import text_ids
from process_gen.data.errors import BadTrajectory, TooLong
from process_gen.data.loader import Source
from process_gen.data.mix import without_pixels
from process_gen.data.tokenizers import Tokenizer
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.record import PROVENANCE_KEYS, TRAJECTORY_KEYS, TURN_KEYS
from process_gen.trajectory.stages import Trajectory

NAMED = 20
"""How many bad trajectories, and how many leaked prompts, are kept by name."""
SAMPLED = 20_000
"""How many trajectories the packing is computed from."""
BLOCK = 64
"""Trajectories of one task that is sent to a worker process."""
SLOTS = ("prompt", "instruction", "before", "after")
SLOTS_HEADERS = ("slot", "texts", "mean", "median", "95%", "99%", "longest", "room", "too long")
STEP = 8
"""Suggested slots are multiples of it."""
ROW = 8
"""Turn slots of a suggested row, at least: several trajectories fill it better than one."""
BARS = 12
"""Lines of a histogram."""


Counts = dict[str, collections.Counter]


@dataclasses.dataclass
class Findings:
    """What some trajectories hold; `+=` adds the findings of others.

    Attributes:
      good, bad: how many trajectories can be read, and how many cannot.
      unfit: how many of the good ones have a text that is too long for the layout, or too many corrections.
      named, last_bad: messages of the first `NAMED` of both and of the last one, with file and line.
      trajectories: the first `SAMPLED`, without pixels.
      counts: name -> value -> how often it occurs; the values are, by name:
        `problems` messages without the place,
        `turns`, `steps`, `corrections` how many a trajectory has,
        `stages` kinds of texts and images; `words alone` is a correction without an image,
        each of `SLOTS` tokens of a text, its two brackets included,
        `sizes`, `modes`, `formats` of image files; empty where the set keeps pixels,
        each of `PROVENANCE_KEYS` what a trajectory states,
        `unknown` names of unknown fields,
        `lost` texts with characters that the tokenizer does not know (by slot),
        `uids`, `prompts`, `digests` hashes of names, of prompts, and of prompts with the last image,
        `leaked` prompts that are in a benchmark.
    """

    good: int = 0
    bad: int = 0
    unfit: int = 0
    named: list[str] = dataclasses.field(default_factory=list)
    last_bad: str = ""
    trajectories: list[Trajectory] = dataclasses.field(default_factory=list)
    counts: Counts = dataclasses.field(default_factory=lambda: collections.defaultdict(collections.Counter))

    def __iadd__(self, other: Findings) -> Findings:
        self.good, self.bad, self.unfit = (
            getattr(self, name) + getattr(other, name) for name in ("good", "bad", "unfit")
        )
        self.named += other.named[: NAMED - len(self.named)]
        self.last_bad = other.last_bad or self.last_bad
        self.trajectories += other.trajectories[: SAMPLED - len(self.trajectories)]
        for name, counts in other.counts.items():
            self.counts[name].update(counts)
        return self

    def add_bad(self, problem: str, unfit: bool = False) -> None:
        """Counts a bad trajectory, or one that is `unfit`; `problem` begins with its place."""
        place, _, text = problem.partition(": ")
        self.bad, self.unfit = self.bad + (not unfit), self.unfit + unfit
        self.counts["problems"][text[:80] or place] += 1
        self.named, self.last_bad = [*self.named, problem][:NAMED], problem


def examine(
    source: Source,
    tokenizer: Tokenizer,
    indices: Sequence[int],
    encode: Callable[[Trajectory], Any],
    leaks: Callable[[str], Any] | None,
) -> Findings:
    """Reads some trajectories, decodes every image, and returns what they hold.

    Of a `StoredSource` the image files are examined too. `encode` raises BadTrajectory for a trajectory,
    without pixels, that does not fit a layout. `leaks` returns a label for prompts of a benchmark, else None.
    """
    found = Findings()
    for index in indices:
        try:
            trajectory = source[index]
            stored = source.object(index) if hasattr(source, "object") else None
        except BadTrajectory as error:
            found.add_bad(str(error))
            continue
        found.good += 1
        found.trajectories.append(bare := without_pixels(trajectory))
        try:
            encode(bare)
        except TooLong:  # no error: training leaves it out
            pass
        except BadTrajectory as error:
            found.add_bad(str(error), unfit=True)
        _count_turns(found.counts, trajectory, tokenizer)
        _count_prompt(found.counts, trajectory, leaks)
        if stored is not None:
            _count_files(found.counts, stored, getattr(source, "fields", ()))
    return found


def _count_turns(counts: Counts, trajectory: Trajectory, tokenizer: Tokenizer) -> None:
    counts["turns"][len(trajectory.turns)] += 1
    counts["steps"][len(trajectory.steps)] += 1
    counts["corrections"][trajectory.corrections] += 1
    for turn in trajectory.turns:
        stages = counts["stages"]
        stages[f"{'refine' if turn.refines else 'plan'}, text"] += turn.before is not None
        stages["inspect, text"] += turn.after is not None
        stages[f"{'refine' if turn.refines else 'sketch'}, image"] += turn.image is not None
        stages["refine, words alone"] += turn.image is None
    for slot, ids in text_ids(tokenizer, trajectory):
        counts[slot][len(ids) + 2] += 1
        counts["lost"][slot] += tokenizer.unknown_id in ids


def _count_prompt(counts: Counts, trajectory: Trajectory, leaks: Callable[[str], Any] | None) -> None:
    texts = f"{trajectory.prompt}\0{trajectory.instruction}".encode()
    counts["uids"][_digest(trajectory.uid.encode())] += 1
    counts["prompts"][_digest(texts)] += 1
    counts["digests"][_digest(texts, np.ascontiguousarray(trajectory.image).tobytes())] += 1
    for key in PROVENANCE_KEYS:
        counts[key][str(trajectory.metadata.get(key, "-"))] += 1
    if leaks is not None and (name := leaks(trajectory.prompt)):
        counts["leaked"][f"{name}: {trajectory.prompt}"] += 1


def _digest(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"\0".join(parts), digest_size=8).digest()


def _count_files(counts: Counts, stored: Mapping[str, Any], own: Collection[str]) -> None:
    """Counts image files and unknown fields; `own` are user-defined fields of turns, which are known."""
    counts["unknown"].update(key for key in stored if key not in TRAJECTORY_KEYS)
    counts["unknown"].update(
        {f"turns.{key}" for turn in stored["turns"] for key in turn if key not in (*TURN_KEYS, *own)}
    )
    for image in (stored.get("image"), *(turn.get("image") for turn in stored["turns"])):
        if image is None:
            continue
        try:
            with PIL.Image.open(io.BytesIO(image["bytes"])) as opened:
                counts["sizes"][f"{opened.height} x {opened.width}"] += 1
                counts["modes"][opened.mode] += 1
                counts["formats"][opened.format] += 1
        except UNREADABLE:  # counted as bad where the trajectory is read
            continue


# ----------------------------------------------------------------- processes


def examine_all(
    source: Source,
    tokenizer: Tokenizer,
    encode: Callable[[Trajectory], Any],
    leaks: Callable[[str], Any] | None,
    processes: int,
    limit: int,
) -> Findings:
    """Runs `examine` on a whole set, or on its first `limit` trajectories where that is not 0.

    With several processes, each of them gets a pickled copy of the other arguments.

    Raises ChildProcessError: one of the processes was ended from outside.
    """
    count = min(len(source), limit or len(source))
    blocks = [range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]
    found = Findings()
    with tqdm.tqdm(total=count, unit=" trajectories", desc="checking", mininterval=1.0) as bar:
        if processes <= 1 or len(blocks) <= 1:
            examined = (examine(source, tokenizer, block, encode, leaks) for block in blocks)
        else:
            examined = _examined(min(processes, len(blocks)), (source, tokenizer, encode, leaks), blocks)
        for part in examined:
            found += part
            bar.update(part.good + part.bad)
    for problem in getattr(source, "skipped", ()):
        found.add_bad(problem)
    return found


def _examined(processes: int, args: tuple[Any, ...], blocks: Sequence[range]) -> Iterator[Findings]:
    context = multiprocessing.get_context("spawn")
    try:
        with concurrent.futures.ProcessPoolExecutor(processes, context, _start, args) as pool:
            yield from pool.map(_examine_here, blocks)
    except concurrent.futures.process.BrokenProcessPool:
        raise ChildProcessError(
            f"one of {processes} processes came to an end while it read the set, often for want of memory: "
            "ask for fewer (--processes)"
        ) from None


_WORKER_ARGS: dict[str, Any] = {}
"""Arguments of `examine` in a worker process, set by `_start`."""


def _start(source: Source, tokenizer: Tokenizer, encode: Any, leaks: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.set_verbosity(logging.ERROR)  # no warnings: `Findings` counts what they report
    _WORKER_ARGS.update(source=source, tokenizer=tokenizer, encode=encode, leaks=leaks)


def _end_with_parent() -> None:
    """Ends this worker process when its parent is gone; it would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _examine_here(indices: range) -> Findings:
    return examine(indices=indices, **_WORKER_ARGS)


# ------------------------------------------------------------- what it needs


def suggest(found: Findings, layout: Layout) -> Layout:
    """Returns `layout` with text slots and turn slots large enough for every trajectory that was read.

    A slot is as long as its longest text, rounded up to a multiple of `STEP`. Image sizes and context stay.
    """
    counts = found.counts
    read = {name: {} if layout.leaves_out(name) else counts[name] for name in SLOTS}
    slots = {name: -(-max(read[name], default=0) // STEP) * STEP for name in SLOTS}
    turns = max(max(counts["turns"], default=1), ROW)
    mean = sum(n * count for n, count in counts["turns"].items()) / max(found.good, 1)
    return dataclasses.replace(
        layout,
        **slots | {"prompt": max(slots["prompt"], STEP)},
        prompt_image=any(one.prompt_image is not None for one in found.trajectories),
        turns=turns,
        trajectories=max(1, min(turns, round(turns / max(mean, 1.0)) + 1)),
        corrections=max(counts["corrections"], default=0),
    )


def flags(layout: Layout, other: Layout) -> str:
    """Returns the config flags that turn `layout` into `other`, as far as `suggest` changes it."""
    fields = (*SLOTS, "prompt_image", "turns", "trajectories", "corrections")
    return " ".join(
        f"--config.layout.{name}={getattr(other, name)}"
        for name in fields
        if getattr(layout, name) != getattr(other, name)
    )


def slots_table(found: Findings, layout: Layout) -> list[tuple]:
    """Returns rows for `SLOTS_HEADERS`: lengths of texts, room in the layout, and how many do not fit."""
    rows = []
    for name in SLOTS:
        if counts := found.counts[name]:
            lengths, room = np.repeat([*counts], [*counts.values()]), getattr(layout, name)
            shares = np.quantile(lengths, (0.5, 0.95, 0.99, 1.0), method="inverted_cdf").tolist()
            long = 0 if layout.leaves_out(name) else int((lengths > room).sum())
            rows.append((name, lengths.size, lengths.mean(), *shares, room, long))
    return rows


def histogram(counts: Mapping[int, int], width: int = 40) -> Iterator[str]:
    """Lines of a bar chart of lengths, `BARS` of them at most."""
    low, high = min(counts), max(counts)
    size = max(1, -(-(high - low + 1) // BARS))
    bins, starts = np.histogram([*counts], range(low, high + size + 1, size), weights=[*counts.values()])
    most, digits = max(bins), len(str(high))
    for start, count in zip(starts, bins, strict=False):
        label = f"{start:>{digits}}" + (f"-{start + size - 1:<{digits}}" if size > 1 else "")
        yield f"  {label}  {'#' * -(-width * count // most)} {count:,}".rstrip()
