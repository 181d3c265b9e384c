"""The sources that a config can name, and how to open them.

A source gives trajectories by index (`loader.Source`). Register another one by
adding a function to `SOURCES`.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import tensorflow_datasets as tfds
import tqdm
from absl import logging

from process_gen.common import files
from process_gen.common.names import check_name, hint
from process_gen.data.encode import TEXT_SLOTS, text_ids
from process_gen.data.errors import BadTrajectory, TooLong, TooManyBadTrajectories, check_budget
from process_gen.data.formats.opening import FORMATS, RECORDS, open_stored
from process_gen.data.formats.places import digest_of, place_of
from process_gen.data.importers import IMPORTERS
from process_gen.data.latents import LatentsSource
from process_gen.data.loader import Source
from process_gen.data.mixture import Mixture, Part
from process_gen.data.preparation import NotPrepared, incomplete, prepare_scenes
from process_gen.data.scenes_builder import KEPT, ODDS, ScenesConfig, scenes_builder, scenes_config, with_kept
from process_gen.data.schema import RecordSource
from process_gen.data.tokenizers import Tokenizer, scenes_tokenizer
from process_gen.scenes.levels import get_level
from process_gen.trajectory.layout import Layout
from process_gen.trajectory.stages import Stage, Trajectory


def config_of_scenes(data: Any) -> ScenesConfig:
    """Returns the scenes data set that `config.data` describes; `data.mixture` is optional."""
    settings = {key: data[key] for key in ("level", "mode", "examples", "seed", *ODDS)}
    if data.get("mixture"):
        settings["mixture"] = dict(data["mixture"])
    return scenes_config(**settings, validation=min(500, data["examples"]))


def open_source(data: Any, image_size: tuple[int, int], split: str = "train") -> Source:
    """Opens the source that `config.data` names, or a `Mixture` where `data.sources` has entries.

    `split` is `train` or `validation`. A source without splits of its own comes whole, whatever it says:
    `mixture.hold_out` splits it.

    Raises:
      NotPrepared: the data set is not on disk; the message holds the command that builds it.
      ValueError: an unknown source or split, or images of another size.
    """
    if not data.get("sources"):
        name = check_name(data["source"], SOURCES, "data source")
        if name == "scenes" and dict(data.get("fields") or {}) not in ({}, {KEPT: "mask"}):
            raise ValueError(
                f'data.source=scenes has one field of its own, dict({KEPT}="mask"): data.fields is '
                f"{dict(data['fields'])}"
            )
        if data.get("fields") and name == RECORDS:
            raise ValueError(
                f"data.fields are read of sets that hold objects, data.source={name} does not: leave them out"
            )
        return SOURCES[name](data, tuple(image_size), split)
    parts = {}
    for place, (name, own) in enumerate(data_of_sources(data).items()):
        stages = frozenset(Stage(stage) for stage in own.get("stages", Stage))
        parts[name] = Part(open_source(own, image_size, split), own.get("weight", 1.0), stages, place)
    return Mixture(parts)


def validation_of(source: Source, data: Any, image_size: tuple[int, int]) -> Source:
    """Returns the source of validation, given that of training; raises as `open_source`.

    A source with splits of its own is opened again for its validation split. Any other is returned as it is:
    the caller takes the held-out part of it (`mixture.hold_out`).
    """
    if isinstance(source, Mixture):
        parts = data_of_sources(data)
        return source.map(lambda name, one: validation_of(one, parts[name], image_size))
    return open_source(data, image_size, "validation") if getattr(source, "own_splits", False) else source


SOURCE_KEYS = ("path", "weight", "stages")
"""Keys that an entry of `data.sources` may have besides those of `data`."""
SHARED_KEYS = ("fields", "tokenizer", "buckets", "latents", "mode", "threads", "on_error", "on_long")
"""Keys of `data` that all sources share, so that an entry of `data.sources` may not set them."""


def data_of_sources(data: Any) -> dict[str, dict[str, Any]]:
    """Returns the settings of each source by name: `data`, updated with its entry of `data.sources`.

    Without `data.sources` there is one source, named "".

    Raises ValueError: an entry has an unknown key or stage or one of `SHARED_KEYS`, or a source no path.
    """
    shared = {key: value for key, value in data.items() if key != "sources"}
    found = {}
    for name, entry in (data.get("sources") or {"": {}}).items():
        for key in entry:
            if key in SHARED_KEYS:
                raise ValueError(
                    f"data.sources.{name} has no key {key!r} of its own, all sources have the same: set "
                    f"--config.data.{key}"
                )
            if key not in SOURCE_KEYS and key not in shared:
                raise ValueError(
                    f"data.sources.{name} has no key {key!r}; {hint(key, (*shared, *SOURCE_KEYS))}"
                )
        for stage in entry.get("stages", ()):
            check_name(stage, [one.value for one in Stage], f"stage in data.sources.{name}")
        found[name] = shared | dict(entry)
        if name and shared.get("latents"):
            found[name]["latents"] = str(pathlib.Path(shared["latents"]) / name)
        if found[name]["source"] != "scenes" and not found[name].get("path"):
            where = f"data.sources.{name}.path" if name else "data.path"
            raise ValueError(f"config.data.source={found[name]['source']} needs --config.{where}=PATH")
    return found


def prepare_source(
    data: Any, layout: Layout, tokenizer: Tokenizer, report: Callable[[str], None] = print
) -> Source:
    """Builds scenes data that are missing, checks that they fit the layout, and opens the training data.

    `report` is called with a summary of each scenes data set, as text for people. Raises ValueError, OSError
    where the data cannot be built, read or used.
    """
    for own in data_of_sources(data).values():
        if own["source"] == "scenes":
            builder, summary = prepare_scenes(config_of_scenes(own), own["data_dir"])
            if tokenizer.fingerprint != scenes_tokenizer().fingerprint:
                summary = dataclasses.replace(summary, longest=_longest(builder, tokenizer))
            split = own.get("on_long", "split") == "split" and layout.context != "full"
            report(summary.describe(layout, split))
            summary.check(layout, split)
    return open_source(data, layout.image_size)


def latents_folder(data: Any, layout: Layout) -> str:
    """Returns the folder `data.latents` or ""; with `data.buckets` its subfolder of the image size."""
    folder = data.get("latents", "")
    if not folder or not data.get("buckets", ()):
        return folder
    return str(pathlib.Path(folder) / "{}x{}".format(*layout.image_size))


def with_latents(source: Source, data: Any, layout: Layout, pixels: bool = True) -> Source:
    """Returns the source; where `data.latents` names a folder, its trajectories carry their latents.

    Without `pixels` the images themselves need not be decoded (`LatentsSource`).

    Raises:
      NotPrepared: the folder holds none; the message holds the command that makes them.
      LatentsMismatch: they were made of another source or for another layout.
    """
    if isinstance(source, Mixture):
        parts = data_of_sources(data)
        return source.map(lambda name, one: with_latents(one, parts[name], layout, pixels))
    folder = latents_folder(data, layout)
    return LatentsSource(source, folder, layout, pixels) if folder else source


def latents_folders(source: Source, data: Any, layout: Layout) -> dict[str, Source]:
    """Returns folder of latents -> the source that they are of; one folder for each source of a mixture."""
    if not isinstance(source, Mixture):
        return {latents_folder(data, layout): source}
    parts = data_of_sources(data)
    return {latents_folder(parts[name], layout): part.source for name, part in source.parts.items()}


def _longest(builder: tfds.core.DatasetBuilder, tokenizer: Tokenizer) -> dict[str, int]:
    """Returns slot -> tokens of its longest text; counted once per tokenizer, then cached beside the data."""
    kept = pathlib.Path(builder.data_dir) / f"longest_{tokenizer.fingerprint}.json"
    with contextlib.suppress(OSError, ValueError):  # no cache that can be read: count again
        return files.read_json(kept)
    longest = dict.fromkeys(TEXT_SLOTS, 0)
    for split in builder.info.splits:
        source = RecordSource(builder, split)
        for index in tqdm.trange(len(source), unit=" trajectories", desc="counting tokens", mininterval=1.0):
            for slot, ids in text_ids(tokenizer, source[index]):
                longest[slot] = max(longest[slot], len(ids) + 2)
    files.write_json(kept, longest)
    return longest


def check_every_trajectory(
    source: Source, bad: str, encode: Callable[[Trajectory], list[Any]], budget: float | None
) -> collections.Counter[str]:
    """Reads and encodes every trajectory of a source, and counts those that training cannot use.

    Args:
      bad: `fail` at the first bad trajectory, or `skip` it and count it.
      encode: makes the arrays of a trajectory's parts, so that a text longer than its slot is found too.
      budget: the share that may be bad where `bad` is `skip`; None for `allowance`.

    Returns:
      The counts `good`, `split` (good ones that make more than one part), `bad` (broken, or they do not
      fit the layout) and `overlong` (more turns than a row has, and cannot be split).

    Raises TooManyBadTrajectories: more than `budget` are bad, or all others are overlong.
    """
    count: collections.Counter[str] = collections.Counter()
    longest, last = None, None
    for index in tqdm.trange(len(source), unit=" trajectories", mininterval=1.0):
        try:
            count["split"] += len(encode(source[index])) > 1
            count["good"] += 1
        except TooLong as error:
            count["overlong"] += 1
            longest = error if longest is None or error.turns > longest.turns else longest
            logging.warning("overlong, training leaves it out: %s", error)
        except BadTrajectory as error:
            if bad == "fail":
                raise
            count["bad"] += 1
            last = error
            logging.warning("bad trajectory: %s", error)
    check_budget(count["bad"], len(source), budget, last)
    if longest is not None and not count["good"]:
        raise TooManyBadTrajectories(
            f"no trajectory fits a row of {longest.slots} turns, the longest one has {longest.turns}: set "
            f"config.layout.turns={longest.turns} ({longest})"
        )
    return count


def _open_scenes(data: Any, image_size: tuple[int, int], split: str) -> Source:
    size = get_level(data["level"]).image_size
    if image_size != (size, size):
        raise ValueError(f"level {data['level']!r} has images of {(size, size)}, the layout of {image_size}")
    builder = scenes_builder(config_of_scenes(data), data["data_dir"])
    if problem := incomplete(builder):
        raise NotPrepared(
            f"{builder.data_dir} cannot be read ({problem}); build it with "
            "`python -m process_gen.prepare --config=...` and the same config"
        )
    return (_WithKept if data.get("fields") else RecordSource)(builder, split)


class _WithKept(RecordSource):
    """Scenes with the field `kept`."""

    def __getitem__(self, index: int) -> Trajectory:
        return with_kept(super().__getitem__(index))


def _open_stored(name: str, data: Any, image_size: tuple[int, int], split: str) -> Source:
    del split  # it has no splits of its own
    return open_stored(data["path"], image_size, data["on_error"], name, fields=data.get("fields"))


def _open_records(data: Any, image_size: tuple[int, int], split: str) -> Source:
    place = place_of(data["path"])
    if not place.exists("dataset_info.json"):
        raise NotPrepared(f"{data['path']} is no TFDS data set: it has no dataset_info.json")
    builder = tfds.builder_from_directory(data["path"])
    if split == "validation" and split not in builder.info.splits:
        split = "train"  # `hold_out` takes the validation share from it
    source = RecordSource(builder, split)
    names = [pathlib.Path(path).name for path in builder.info.splits[split].filepaths]
    source.name = f"{source.name} of SHA-256 {digest_of(place, names)[:16]}"
    if source.image_size != image_size:
        raise ValueError(f"{source.name} has images of {source.image_size}, the layout of {image_size}")
    return source


SOURCES: dict[str, Callable[[Any, tuple[int, int], str], Source]] = {
    "scenes": _open_scenes,
    RECORDS: _open_records,
    **{name: functools.partial(_open_stored, name) for name in (*FORMATS, *IMPORTERS)},
}
