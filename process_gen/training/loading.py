"""The batches of a run: what it trains on, and what it holds out for validation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from process_gen.data.buckets import Size, merge_buckets, split_into_buckets
from process_gen.data.errors import budget_of_part
from process_gen.data.loader import Loader, Source, make_loader
from process_gen.data.mixture import hold_out
from process_gen.data.packing import Policy
from process_gen.data.preparation import NotPrepared
from process_gen.data.sources import data_of_sources, validation_of, with_latents
from process_gen.data.tokenizers import Tokenizer
from process_gen.distributed import agreement
from process_gen.experiment.builders import ConfigError, build_losses
from process_gen.trajectory.layout import Layout


def load(
    config: ConfigDict,
    buckets: Mapping[Size, Source],
    layouts: Mapping[Size, Layout],
    tokenizer: Tokenizer,
    rows: Sequence[int],
    split: str = "train",
) -> Loader:
    """The loader of this host's batches, of all image sizes in turn; only `train` is shuffled.

    Args:
      buckets: the trajectories by image size (`buckets.split_into_buckets`).
      rows: indices in the global batch of the rows that this host loads.
      split: `train` or `validation`.

    Raises:
      ValueError: nothing is held out for validation.
      NotPrepared: latents that the config names are not there.
    """
    loaders, trajectories = {}, sum(map(len, buckets.values()))
    pixels, shares = build_losses(config).reads_pixels, config.data.validation
    if config.data.sources:
        shares = {name: own["validation"] for name, own in data_of_sources(config.data).items()}
    for size, bucket in buckets.items():
        policy = Policy(config.data.on_error, budget_of_part(len(bucket), trajectories), config.data.on_long)
        if split != "train":  # bad held-out trajectories must not end a run
            policy = Policy("skip", 1.0, config.data.on_long)
        source = with_latents(bucket, config.data, layouts[size], pixels or layouts[size].vit_tokens > 0)
        source = hold_out(source, shares, split)
        if not len(source):
            continue
        loaders[size] = make_loader(
            source,
            tokenizer,
            layouts[size],
            config.train.batch_size,
            rows=rows,
            seed=config.seed,
            shuffle=split == "train",
            open_rows=max(2, 8 // len(buckets)),
            threads=config.data.threads,
            policy=policy,
        )
    if not loaders:
        raise ValueError(
            f"config.data.validation={config.data.validation} holds out none of {trajectories} trajectories"
        )
    return merge_buckets(loaders, buckets)


def check_alike(iterator: Any, validates: bool) -> None:
    """Checks that all hosts, which all call this, train on the same data: a host's copy may be older.

    Raises:
      ConfigError: the data differ, or only some hosts have held-out trajectories.
    """
    mine = json.dumps(
        {**iterator.get_state()["identity"], "held-out trajectories": validates}, sort_keys=True
    )
    everyones = agreement.allgather_text(mine)
    if len(set(everyones)) > 1:
        other = next(one for one in everyones if one != everyones[0])
        a, b = json.loads(everyones[0]), json.loads(other)
        key = next(key for key in sorted({*a, *b}) if a.get(key) != b.get(key))
        raise ConfigError(
            f"hosts do not read the same data: process 0 has {key} {a.get(key)!r}, process "
            f"{everyones.index(other)} has {b.get(key)!r}; give all of them the same copy"
        )


def held_out(
    config: ConfigDict,
    source: Source,
    layouts: Mapping[Size, Layout],
    tokenizer: Tokenizer,
    rows: Sequence[int],
) -> Loader | None:
    """The loader of trajectories that are not trained on; None, with a warning, where there are none.

    `source` is the training data before anything is held out of it.
    """
    sizes = list(layouts)
    try:
        source = validation_of(source, config.data, sizes[0])
        return load(config, split_into_buckets(source, sizes), layouts, tokenizer, rows, "validation")
    except (ValueError, NotPrepared) as error:
        logging.warning("no validation losses: %s", error)
        return None
