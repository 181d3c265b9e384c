"""Turns a source of trajectories into batches of packed rows.

    source -> shuffle anew each epoch -> deal to the rows of the batch -> encode -> pack -> batch -> prefetch

Row r of a global batch of B rows reads the trajectories r, r + B, r + 2 B, ... of the shuffled epochs, so an
epoch holds every trajectory once, and the batches are the same however many hosts load them: a host drives
the rows that its devices hold. The iterator is a `grain.DatasetIterator`: its state, one entry per row, saves
and restores exactly, partly filled rows included, on any number of hosts.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import itertools
import weakref
from collections.abc import Sequence
from typing import Protocol

import grain

from process_gen.data.encode import encode_parts
from process_gen.data.packing import SPLIT, PackedBatches, PackingReport, Policy, packing_stats
from process_gen.data.tokenizers import Tokenizer
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Trajectory


class Source(Protocol):
    """Trajectories with random access; reading may raise `BadTrajectory`.

    A source may have a `name`, which a saved loader state is checked against, and a `stream` with the
    arguments of `stream_of`, where it has an order of its own (`mixture.Mixture`).
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Trajectory: ...


def name_of(source: Source) -> str:
    """Returns what identifies the content of a source: its `name`, or that of its class."""
    return getattr(source, "name", type(source).__name__)


@dataclasses.dataclass(frozen=True)
class Loader:
    """Batches of packed rows, `prefetch` of them ready ahead; every iteration starts from the beginning."""

    dataset: grain.IterDataset
    layout: Layout
    prefetch: int

    def __iter__(self) -> grain.DatasetIterator:
        """Returns a fresh iterator over dicts of arrays, the fields of a `Batch`.

        Its `close()` ends the prefetching; iterators still open when the interpreter exits are closed then.
        """
        batches = self.dataset
        if self.prefetch:
            batches = grain.experimental.ThreadPrefetchIterDataset(
                batches, prefetch_buffer_size=self.prefetch
            )
        iterator = iter(batches)
        atexit.register(_close_at_exit, weakref.ref(iterator))
        return iterator

    def report(self, batches: int | None = 8) -> PackingReport:
        """Measures how much of the first batches is useful, or with None of all."""
        with contextlib.closing(iter(self)) as iterator:
            return packing_stats(itertools.islice(iterator, batches), self.layout)


def stream_of(source: Source, seed: int, shuffle: bool, epochs: int | None) -> grain.MapDataset:
    """Returns the trajectories in the order of training, with random access; each epoch is shuffled anew.

    `epochs` None never ends. A source with a `stream` method makes its own order.
    """
    if hasattr(source, "stream"):
        return source.stream(seed, shuffle, epochs)
    found = grain.MapDataset.source(source).seed(seed)
    return (found.shuffle() if shuffle else found).repeat(epochs)


def make_loader(
    source: Source,
    tokenizer: Tokenizer,
    layout: Layout,
    batch_size: int,
    *,
    rows: Sequence[int] | None = None,
    seed: int = 0,
    shuffle: bool = True,
    epochs: int | None = None,
    open_rows: int = 8,
    prefetch: int = 2,
    threads: int = 0,
    policy: Policy | None = None,
) -> Loader:
    """Returns the loader of a source.

    Args:
      batch_size: rows of a batch, over all hosts.
      rows: which of them this host loads (`distributed.sharding.local_rows`); all by default.
      seed: of the shuffle; every epoch has an order of its own.
      shuffle: off for evaluation.
      epochs: how many passes; None never ends. Rows of a finite loader that
        have ended are empty until the last one of this host has.
      open_rows: rows that are filled at a time, for each row of a batch.
      prefetch: batches that one background thread keeps ready, 0 for none.
      threads: read, decode and encode trajectories ahead; 0 leaves that to the thread that packs.
      policy: what to do with trajectories that cannot be used; `Policy()` by default.

    Raises ValueError: an empty source.
    """
    if not len(source):
        raise ValueError("the source has no trajectories")
    ordered = stream_of(source, seed, shuffle, epochs)
    policy = policy or Policy()
    identity = {
        "source": f"{name_of(source)} of {len(source)} trajectories",
        "order": f"seed {seed}" if shuffle else "as stored",
        "batch": f"{batch_size} rows",
        "rows": f"{open_rows} open ones of {layout.turns} turns and {layout.trajectories} trajectories",
    }
    if policy.long == "split":
        identity[SPLIT] = "split"
    batches = PackedBatches(
        streams={
            row: ordered.slice(slice(row, None, batch_size))
            for row in sorted(range(batch_size) if rows is None else rows)
        },
        encode=functools.partial(encode_parts, tokenizer, layout, policy.long == "split"),
        layout=layout,
        open_rows=open_rows,
        policy=policy,
        identity=identity,
        epoch=-(-len(source) // batch_size),
        threads=threads,
    )
    return Loader(batches, layout, prefetch)


def _close_at_exit(reference: weakref.ref) -> None:
    """Closes an iterator before the interpreter takes away the modules that closing needs."""
    iterator = reference()
    if iterator is not None:
        iterator.close()
        iterator.close = lambda: None
