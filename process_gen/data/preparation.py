"""Builds the scenes data set on disk: once, completely, with progress and a summary.

The files appear under their final name only when all of them are written. What
an interrupted run left behind is removed and built again; a data set that is
already there is checked and kept. A lock lets one process build at a time.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import pathlib
import shutil
import sys
import tempfile
import time

import tensorflow_datasets as tfds
import tqdm
from absl import logging
from array_record.python import array_record_module

from process_gen.common import files
from process_gen.data.encode import TEXT_SLOTS, text_ids
from process_gen.data.scenes_builder import SPLITS, ScenesConfig, scenes_builder
from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.distributed import lock
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Trajectory

SUMMARY = "summary.json"


class NotPrepared(FileNotFoundError):
    """A data set, or a folder of latents, is missing or incomplete."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a prepared data set holds.

    Attributes:
      examples: trajectories of each split.
      turns, steps: number of turns, or of steps -> how many trajectories have so many.
      longest: slot -> tokens of its longest text, with the two brackets.
      refined, slips: shares of drafts that are corrected, and that are wrong and stay uncorrected.
      seconds: how long the build took.
    """

    path: str
    examples: dict[str, int]
    turns: dict[int, int]
    steps: dict[int, int]
    longest: dict[str, int]
    refined: float
    slips: float
    megabytes: float
    seconds: float

    def overlong(self, layout: Layout) -> int:
        """How many trajectories have more turns than a row of `layout`."""
        return sum(count for turns, count in self.turns.items() if turns > layout.turns)

    def _rooms(self, layout: Layout) -> list[tuple[str, int, int]]:
        """(slot, tokens of its longest text, tokens of the slot) of the slots that `layout` reads."""
        return [
            (slot, need, getattr(layout, slot))
            for slot, need in self.longest.items()
            if not layout.leaves_out(slot)
        ]

    def describe(self, layout: Layout, split: bool = False) -> str:
        """Returns the summary as lines for people, with the layout's room beside the lengths.

        `split` says whether what is longer than a row is split or lost.
        """

        def shares(counts):
            total = sum(counts.values())
            mean = sum(n * count for n, count in counts.items()) / total
            found = ", ".join(f"{n}: {count / total:.0%}" for n, count in counts.items())
            return f"{mean:.2f} per trajectory ({found})"

        examples = ", ".join(f"{count:,} for {split}" for split, count in self.examples.items())
        lengths = ", ".join(f"{slot} {need} of {room}" for slot, need, room in self._rooms(layout))
        long = self.overlong(layout)
        fate = "split" if split else "lost"
        left_out = f"; {long:,} longer than a row of {layout.turns} are {fate}" if long else ""
        return "\n".join(
            [
                f"data set {self.path}",
                f"  trajectories  {examples}",
                f"  turns         {shares(self.turns)}{left_out}",
                f"  steps         {shares(self.steps)}",
                f"  drafts        {self.refined:.0%} refined, {self.slips:.0%} slips",
                f"  longest text  {lengths} tokens",
                f"  size          {self.megabytes:.1f} MB, built in {self.seconds:.0f} s "
                f"({sum(self.examples.values()) / max(self.seconds, 1e-9):,.0f} trajectories/s)",
            ]
        )

    def check(self, layout: Layout, split: bool = False) -> None:
        """Raises ValueError if a text is longer than its slot of `layout`, or no trajectory fits a row."""
        rooms = self._rooms(layout)
        if small := [f"layout.{s} is {room} but must be {need}" for s, need, room in rooms if need > room]:
            raise ValueError(f"the texts of the data set do not fit the layout: {', '.join(small)}")
        if not split and self.overlong(layout) == sum(self.turns.values()):
            raise ValueError(
                f"every trajectory of the data set has more turns than a row of layout.turns={layout.turns}, "
                f"the longest one {max(self.turns)}: set layout.turns={max(self.turns)}"
            )


Prepared = tuple[tfds.core.DatasetBuilder, Summary]


def prepare_scenes(config: ScenesConfig, data_dir: str | pathlib.Path) -> Prepared:
    """Builds a scenes data set in `data_dir`, unless it is there and complete; returns what it holds, too.

    It goes to the folder `scenes/<config name>/<version>`; the name that `scenes_config` gives tells the
    content apart. Raises ValueError where the set is complete, but its summary file cannot be used.
    """
    if found := _prepared(config, data_dir):  # without the lock: the folder may be read-only
        return found
    builder = scenes_builder(config, data_dir)
    path = pathlib.Path(builder.data_dir)
    # Not `data_dir` itself: it may be the workdir of a run, which is locked already.
    with lock.hold(path.parent, "building a data set", wait=True):
        if found := _prepared(config, data_dir):  # by another process meanwhile
            return found
        if path.exists():
            logging.warning("building %s again: %s", path, incomplete(builder) or f"it has no {SUMMARY}")
            shutil.rmtree(path)
        for leftover in path.parent.glob("*incomplete*"):
            logging.warning("removing what an interrupted run left: %s", leftover)
            shutil.rmtree(leftover)
        return _build(config, data_dir)


def _prepared(config: ScenesConfig, data_dir: str | pathlib.Path) -> Prepared | None:
    """Returns builder and summary of a data set that is complete on disk, else None."""
    builder = scenes_builder(config, data_dir)
    path = pathlib.Path(builder.data_dir)
    if not (path / SUMMARY).is_file() or incomplete(builder):
        return None
    logging.info("already prepared: %s", path)
    try:
        fields = files.read_json(path / SUMMARY)
        counts = {key: {int(n): count for n, count in fields[key].items()} for key in ("turns", "steps")}
        return builder, Summary(**fields | counts | {"path": str(path)})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path / SUMMARY} cannot be used ({error}); remove {path} to make it anew"
        ) from error


def incomplete(builder: tfds.core.DatasetBuilder) -> str | None:
    """Returns what is missing of a data set on disk, in words; None if it is complete."""
    path = pathlib.Path(builder.data_dir)
    if not (path / "dataset_info.json").is_file():
        return "it does not exist" if not path.exists() else "it has no dataset_info.json"
    for split in SPLITS:
        if split not in builder.info.splits:
            return f"split {split!r} is missing"
        info = builder.info.splits[split]
        for file, length in zip(info.filepaths, info.shard_lengths, strict=True):
            found = records_of(pathlib.Path(file))
            if found != length:
                return f"{pathlib.Path(file).name} has {found} of {length} records"
    return None


def records_of(file: pathlib.Path) -> int:
    """The number of records of an ArrayRecord file, 0 if it cannot be read."""
    if not file.is_file():
        return 0
    try:
        with contextlib.closing(array_record_module.ArrayRecordReader(str(file))) as reader:
            return reader.num_records()
    except (RuntimeError, ValueError):
        return 0


def _build(config: ScenesConfig, data_dir: str | pathlib.Path) -> Prepared:
    start = time.monotonic()
    total = config.examples + config.validation
    wait = 0.2 if sys.stderr.isatty() else 5.0
    bar = tqdm.tqdm(total=total, unit=" trajectories", desc=config.name, mininterval=wait)
    turns, steps, drafts, longest = (collections.Counter() for _ in range(4))

    def count(trajectory: Trajectory) -> None:
        bar.update()
        turns[len(trajectory.turns)] += 1
        steps[len(trajectory.steps)] += 1
        for step in trajectory.steps:
            drafts["all"] += 1
            drafts["refined"] += bool(step.refines)
            drafts["slips"] += not step.turns[-1].image_ok
        for slot, ids in text_ids(scenes_tokenizer(), trajectory):
            longest[slot] = max(longest[slot], len(ids) + 2)

    builder = scenes_builder(config, data_dir, on_example=count)
    # Nothing is downloaded; the redirect hides what TFDS prints about downloads.
    with bar, tempfile.TemporaryDirectory() as unused, contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_dir=unused)
    path = pathlib.Path(builder.data_dir)
    summary = Summary(
        path=str(path),
        examples=dict(zip(SPLITS, (config.examples, config.validation), strict=True)),
        turns=dict(sorted(turns.items())),
        steps=dict(sorted(steps.items())),
        longest={slot: longest[slot] for slot in TEXT_SLOTS},
        refined=drafts["refined"] / drafts["all"],
        slips=drafts["slips"] / drafts["all"],
        megabytes=sum(file.stat().st_size for file in path.iterdir()) / 1e6,
        seconds=time.monotonic() - start,
    )
    files.write_json(path / SUMMARY, dataclasses.asdict(summary), indent=2)
    return builder, summary
