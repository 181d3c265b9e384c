"""Converts published tensors to a step of a checkpoint on disk, block by block.

Orbax can read the step. Each parameter is one array, chunked by the shards of a given mesh, so that a device
later reads its own part and nothing else. Memory holds one block of one array, whatever the size of the model
and whatever devices there are: the mesh may be that of another machine.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from process_gen.checkpoints import load, manifest
from process_gen.checkpoints.errors import CheckpointError
from process_gen.checkpoints.published.rules import Shape
from process_gen.checkpoints.published.sources import BLOCK, Box, Source, kvstore
from process_gen.checkpoints.published.tensors import Progress
from process_gen.checkpoints.store import versions
from process_gen.common.buckets import is_bucket

STEP = 0
_WHOLE = 8 << 20
"""Bytes up to which an array is one chunk."""
_DICT_KEY = 2  # Orbax's code for a part of a path that is a key of a dict
_COMPRESSOR = {"id": "zstd", "level": 1}


def write_step(
    workdir: epath.PathLike,
    items: Mapping[str, tuple[Source, Mapping[str, Shape]]],
    metadata: Mapping[str, Any],
    progress: Progress | None = None,
) -> None:
    """Writes step 0 of a workdir, which is committed whole or not at all.

    `items` gives by name (`ema`, `autoencoder`) the arrays, and the shape of one shard by name of an array;
    an array without one is one shard. Raises CheckpointError where the workdir holds a checkpoint already,
    or cannot be written to.
    """
    root = load.absolute(workdir) / load.FOLDER
    if found := load.steps(root):
        raise CheckpointError(f"{root} already holds step {found[-1]}: choose another --target")
    marked = is_bucket(root)
    place = root / (str(STEP) if marked else f"{STEP}.orbax-checkpoint-tmp-convert")
    try:
        if place.exists():
            place.rmtree()
        place.mkdir(parents=True)
    except OSError as error:
        raise CheckpointError(f"{root} cannot be written to ({error})") from error
    for name, (source, shards) in items.items():
        _write_item(place / name, source, shards, progress)
    facts = {**json.loads(json.dumps(metadata)), "step": STEP, "versions": versions()}
    (place / load.METADATA).mkdir()
    ocp.JsonCheckpointHandler().save(place / load.METADATA, args=ocp.args.JsonSave(facts))
    manifest.write(place)
    if marked:
        (place / load.MARKER).write_text("committed by process_gen.convert")
    else:
        place.rename(root / str(STEP))


def _write_item(
    folder: epath.Path, source: Source, shards: Mapping[str, Shape], progress: Progress | None
) -> None:
    folder.mkdir()
    leaves = {}
    for name in sorted(source.spec):
        keys = name.split("/")
        _write_array(folder / ".".join(keys), source, name, shards.get(name), progress)
        leaves[str(tuple(keys))] = {
            "key_metadata": [{"key": key, "key_type": _DICT_KEY} for key in keys],
            "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
        }
    description = {
        "tree_metadata": leaves,
        "use_ocdbt": False,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
    (folder / "_METADATA").write_text(json.dumps(description))


def _write_array(
    folder: epath.Path, source: Source, name: str, shard: Shape | None, progress: Progress | None
) -> None:
    shape, dtype = tuple(source.spec[name]), np.dtype(source.dtypes[name])
    stacked = "layers" in name.split("/")  # the first axis counts layers
    at = source.axis(name) + stacked
    chunk = chunk_shape(shape, tuple(shard or shape), at, stacked, dtype.itemsize)
    metadata = {"chunks": chunk, "compressor": _COMPRESSOR, "dimension_separator": "."}
    spec = {"driver": "zarr", "kvstore": kvstore(folder), "metadata": metadata}
    spec["store_data_equal_to_fill_value"] = True
    store = ts.open(spec, create=True, dtype=dtype, shape=shape).result()
    for box in boxes(shape, chunk, at, stacked, dtype.itemsize):
        block = source.read(name, box)
        store[box or ...].write(block).result()
        if progress is not None:
            progress(block.nbytes)


def chunk_shape(shape: Shape, shard: Shape, at: int, stacked: bool, itemsize: int) -> Shape:
    """The shape of a chunk: a shard, one layer of it, and of that at most `BLOCK` bytes along axis `at`.

    A shard is a whole number of chunks, unless its size has no fitting divisor. Small arrays are one chunk.
    """
    if math.prod(shape) * itemsize <= _WHOLE:
        return shape
    chunk = [1, *shard[1:]] if stacked else list(shard)
    rows = chunk[at]
    most = max(1, min(rows, BLOCK // (math.prod(chunk) // rows * itemsize)))
    fitting = max(n for n in range(1, most + 1) if rows % n == 0)
    chunk[at] = fitting if 4 * fitting > most else most
    return tuple(chunk)


def boxes(shape: Shape, chunk: Shape, at: int, stacked: bool, itemsize: int) -> Iterator[Box]:
    """Boxes that cover an array, each of about `BLOCK` bytes and a whole number of chunks along axis `at`."""
    if chunk == shape:
        yield ()
        return
    layers = [slice(i, i + 1) for i in range(shape[0])] if stacked else [slice(None)]
    rows = BLOCK // max(1, math.prod(shape) // len(layers) // shape[at] * itemsize)
    step = max(chunk[at], rows // chunk[at] * chunk[at])
    for layer, start in itertools.product(layers, range(0, shape[at], step)):
        box = [layer, *[slice(None)] * (len(shape) - 1)]
        box[at] = slice(start, min(start + step, shape[at]))
        yield tuple(box)
