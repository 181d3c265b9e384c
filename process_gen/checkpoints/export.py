"""Weights as one `.safetensors` file: to ship, to share, to load without Orbax.

Arrays are stored flat under the model's own names (`backbone/layers/und/q_proj/kernel`), and what a
reader must know to build the model (config, size, layout, tokenizer) stands as JSON in the file's header.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from process_gen.checkpoints import arrays
from process_gen.checkpoints.errors import CheckpointCorrupt, CheckpointNotFound
from process_gen.checkpoints.published import tensors
from process_gen.common.files import from_json

_KEY = "process_gen"
_FORMAT = 1


def save_weights(path: epath.PathLike, params: Any, metadata: dict[str, Any]) -> None:
    """Writes weights to one file, which appears whole or not at all.

    Args:
      path: ends in `.safetensors`; its folder is made if need be.
      params: tree of arrays.
      metadata: JSON-able; `which` in it says which weights these are (`ema` if it says nothing).

    Raises:
      ValueError: the path ends in something else, or such files hold no arrays of some dtype.
    """
    place = epath.Path(path)
    if place.suffix != tensors.SUFFIX:
        raise ValueError(f"packaged weights are .safetensors files, got {place.name!r}")
    store = {name: np.asarray(x) for name, x in sorted(arrays.flatten(params).items())}
    if odd := [name for name, x in store.items() if x.dtype not in tensors.DTYPES.values()]:
        raise ValueError(f"packaged weights hold no {store[odd[0]].dtype} arrays, but {odd[0]} is one")
    header = {"format": _FORMAT, "sha256": _digest(store, metadata), "metadata": metadata}
    items = [tensors.Item.of(name, x) for name, x in store.items()]
    place.parent.mkdir(parents=True, exist_ok=True)
    tensors.write_file(place, items, texts={_KEY: json.dumps(header, sort_keys=True)})


def load_weights(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads what `save_weights` wrote: a nested dict of NumPy arrays, floats as float32, and the metadata.

    Raises:
      CheckpointNotFound: no such file, or a file of another kind.
      CheckpointCorrupt: cut off, garbled or changed.
    """
    found = tensors.open_file(path)
    if _KEY not in found.texts:
        raise CheckpointNotFound(f"{path} was not written by process_gen: it does not say for which model")
    try:
        header = from_json(found.texts[_KEY])
        known = header["format"] == _FORMAT and {"sha256", "metadata"} <= set(header)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointCorrupt(f"{path} is cut off or garbled ({error}); get a fresh copy") from error
    if not known:
        raise CheckpointNotFound(f"{path} was written by another version (format {header['format']})")
    store = {name: found.read(name) for name in found}
    if _digest(store, header["metadata"]) != header["sha256"]:
        raise CheckpointCorrupt(f"{path} has changed since it was written (other SHA-256); get a fresh copy")
    return arrays.unflatten({name: _in_float32(x) for name, x in store.items()}), header["metadata"]


def is_ours(path: str) -> bool:
    """Whether `save_weights` wrote a file; reads only the header, and raises as `tensors.open_file`."""
    return _KEY in tensors.open_file(path).texts


def _in_float32(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _digest(store: dict[str, np.ndarray], metadata: Any) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(store):
        digest.update(f"{name} {store[name].dtype} {store[name].shape}\n".encode())
        digest.update(store[name].tobytes())
    return digest.hexdigest()
