"""Builds the data set that a config describes.

    python -m process_gen.prepare --config=configs/scenes.py:quick

A data set that is there already is checked and kept. For trajectories of your
own (`--config.data.source=folder --config.data.path=...`) every line and every
image is checked instead, and what training would refuse is refused. With
`--config.data.latents=FOLDER` the images are also encoded to latents ahead of
training, by the autoencoder of the weights `config.train.init`.
"""

from __future__ import annotations

from process_gen.experiment import cli

if __name__ == "__main__":  # bad flags are found before the slow imports
    cli.read_flags(config="configs/scenes.py:quick")

# isort: split
import collections
import functools
from collections.abc import Mapping, Sequence

from absl import flags
from ml_collections import ConfigDict

from process_gen.checkpoints.errors import CheckpointError
from process_gen.data.buckets import Size, split_into_buckets
from process_gen.data.encode import encode_parts
from process_gen.data.errors import BadTrajectory, TooManyBadTrajectories, budget_of_part
from process_gen.data.loader import Source, make_loader
from process_gen.data.packing import Policy
from process_gen.data.sources import check_every_trajectory, data_of_sources, latents_folders, prepare_source
from process_gen.data.tokenizers import Tokenizer
from process_gen.experiment import builders, vocabulary
from process_gen.reports.table import table
from process_gen.trajectory.layout import Layout
from process_gen.weights import ahead

PACKED_ROWS = 32
"""Rows that the packing report is measured on."""


def prepare(config: ConfigDict) -> None:
    """Builds or checks the data of a config and prints what it holds.

    Raises:
      ConfigError: the config cannot work.
      BadTrajectory, TooManyBadTrajectories, OSError: the data is broken or out of reach.
      CheckpointError: the weights of the autoencoder cannot be read.
    """
    builders.check(config)
    tokenizer = vocabulary.build_tokenizer(config)
    layouts = builders.build_layouts(config)
    with builders.as_config_error():
        source = prepare_source(config.data, next(iter(layouts.values())), tokenizer)
        parts = split_into_buckets(source, list(layouts))
    if any(own["source"] != "scenes" for own in data_of_sources(config.data).values()):
        _check(config, source, parts, layouts, tokenizer)
    for size, part in parts.items():
        print("\npacking, images of {} x {}, shares of the tokens of a row:".format(*size))
        policy = Policy(config.data.on_error, 0.9, config.data.on_long)
        loader = make_loader(part, tokenizer, layouts[size], 1, epochs=1, prefetch=0, policy=policy)
        print(loader.report(PACKED_ROWS).table())
    if config.data.get("latents", ""):
        params = ahead.autoencoder_params(config)
        for size, part in parts.items():
            for folder, one in latents_folders(part, config.data, layouts[size]).items():
                info = ahead.encode_latents(config, folder, one, layouts[size], params)
                print(f"{folder}: latents of {info.trajectories:,} trajectories")


def _check(
    config: ConfigDict,
    source: Source,
    parts: Mapping[Size, Source],
    layouts: Mapping[Size, Layout],
    tokenizer: Tokenizer,
) -> None:
    """Reads every trajectory of a user's own data as training would, and prints how many are usable."""
    found = collections.Counter(bad=len(getattr(source, "skipped", ())))
    for size, part in parts.items():
        encode = functools.partial(encode_parts, tokenizer, layouts[size], config.data.on_long == "split")
        budget = budget_of_part(len(part), len(source))
        found += check_every_trajectory(part, config.data.on_error, encode, budget)
    title = config.data.path or ", ".join(config.data.sources)
    print(
        f"{title}: {found['good']} good trajectories ({found['split']} longer than a row, and split), "
        f"{found['bad']} bad ones, {found['overlong']} longer than a row, and lost"
    )
    if len(layouts) > 1:
        rows = [(f"{size[0]} x {size[1]}", len(parts.get(size, ()))) for size in layouts]
        print(table(rows, ("images of", "trajectories")))


ERRORS = (builders.ConfigError, BadTrajectory, TooManyBadTrajectories, CheckpointError, OSError)


def main(argv: Sequence[str]) -> None:
    del argv
    prepare(flags.FLAGS.config)


if __name__ == "__main__":
    cli.run(main, ERRORS)
