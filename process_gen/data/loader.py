"""From a source of trajectories to batches of packed rows.

    source -> shuffle anew each epoch -> shard by host -> encode -> pack -> batch -> prefetch

The iterator is a `grain.DatasetIterator`: its state saves and restores exactly
with `grain.checkpoint.CheckpointSave` and `CheckpointRestore` (Orbax), partly
filled rows included.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import itertools
import weakref
from typing import Any, Protocol

import grain
import numpy as np

from process_gen.data.encode import encode_trajectory
from process_gen.data.packing import PackedRows, PackingReport, Policy, packing_stats
from process_gen.data.tokenizers import Tokenizer
from process_gen.trajectory.batch import blank
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Trajectory


class Source(Protocol):
    """Trajectories with random access; reading may raise `BadTrajectory`.

    A source may have a `name`, which a saved loader state is checked against.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Trajectory: ...


@dataclasses.dataclass(frozen=True)
class Loader:
    """Batches of packed rows, as often as one iterates.

    Attributes:
      dataset: the Grain pipeline behind it.
      layout: sizes of a row.
      batch_size: rows of a batch, on this host.
      trajectories: of one epoch, over all hosts.
    """

    dataset: grain.IterDataset
    layout: Layout
    batch_size: int
    trajectories: int

    def __iter__(self) -> grain.DatasetIterator:
        """Returns a fresh iterator over dicts of arrays, the fields of a `Batch`.

        Its `close()` ends the prefetching; what is still open at exit is closed then.
        """
        iterator = iter(self.dataset)
        atexit.register(_close_at_exit, weakref.ref(iterator))
        return iterator

    def report(self, batches: int = 8) -> PackingReport:
        """Measures the padding of the first batches."""
        iterator = iter(self)
        try:
            return packing_stats(itertools.islice(iterator, batches))
        finally:
            iterator.close()


def make_loader(
    source: Source,
    tokenizer: Tokenizer,
    layout: Layout,
    batch_size: int,
    *,
    seed: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
    shuffle: bool = True,
    epochs: int | None = None,
    open_rows: int = 16,
    prefetch: int = 2,
    policy: Policy | None = None,
) -> Loader:
    """Returns the loader of a source.

    Args:
      source: where the trajectories come from.
      tokenizer: makes ids of their texts.
      layout: sizes of a row.
      batch_size: rows of a batch, on this host.
      seed: of the shuffle; every epoch has an order of its own.
      shard_index, shard_count: which share of each epoch this host reads
        (`jax.process_index()`, `jax.process_count()`).
      shuffle: off for evaluation.
      epochs: how many passes; None never ends. The last batch of a finite
        loader is filled up with empty rows.
      open_rows: rows that are filled at a time.
      prefetch: batches that one background thread keeps ready, 0 for none.
      policy: what to do with trajectories that cannot be used; `Policy()` by default.

    Raises:
      ValueError: an empty source or arguments that make no sense together.
    """
    if not len(source):
        raise ValueError("the source has no trajectories")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not 0 <= shard_index < shard_count:
        raise ValueError(f"shard_index {shard_index} is not in [0, {shard_count})")
    stream = grain.MapDataset.source(source).seed(seed)
    stream = stream.shuffle() if shuffle else stream
    stream = stream.repeat(epochs).slice(slice(shard_index, None, shard_count))
    encode = functools.partial(encode_trajectory, tokenizer, layout)
    identity = {
        "source": f"{getattr(source, 'name', type(source).__name__)} of {len(source)} trajectories",
        "order": f"seed {seed}" if shuffle else "as stored",
        "shard": f"{shard_index} of {shard_count}",
        "rows": f"{open_rows} open ones of {layout.steps} steps and {layout.trajectories} trajectories",
    }
    epoch = -(-len(source) // shard_count)
    rows = PackedRows(stream, encode, layout, open_rows, policy or Policy(), identity, epoch)
    batches = rows.batch(batch_size, batch_fn=functools.partial(_batch, size=batch_size))
    if prefetch:
        batches = grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=prefetch)
    return Loader(batches, layout, batch_size, len(source))


def _close_at_exit(reference: weakref.ref) -> None:
    """Closes an iterator before the interpreter takes away the modules that closing needs."""
    iterator = reference()
    if iterator is not None:
        iterator.close()
        iterator.close = lambda: None


def _batch(rows: list[dict[str, np.ndarray]], size: int) -> dict[str, Any]:
    """Stacks rows, with empty ones behind them where the data has ended."""
    empty = [{name: np.full_like(value, blank(name)) for name, value in rows[0].items()}] * (size - len(rows))
    return {name: np.stack([row[name] for row in rows + empty]) for name in rows[0]}
