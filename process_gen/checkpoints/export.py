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
import safetensors
import safetensors.numpy
from etils import epath

from process_gen.checkpoints import arrays
from process_gen.checkpoints.errors import CheckpointCorrupt, CheckpointNotFound
from process_gen.common import files

_KEY = "process_gen"
_FORMAT = 1
_LARGEST_HEADER = 100 << 20
"""Bytes, as the format has it."""
_DTYPES = {
    "BF16": jnp.dtype(jnp.bfloat16),
    "BOOL": np.dtype(bool),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "U8": np.dtype(np.uint8),
}


def save_weights(path: str, params: Any, metadata: dict[str, Any], dtype: str | None = None) -> int:
    """Writes the weights, whole or not at all.

    Args:
      path: ends in `.safetensors`; its folder is made if need be.
      params: tree of arrays.
      metadata: JSON-able; `which` in it says which weights these are (`ema` if it says nothing).
      dtype: `float32`, `bfloat16` or `float16` to store floating-point arrays in, None to leave them.

    Returns:
      Bytes written.
    """
    place = epath.Path(path)
    if place.suffix != ".safetensors":
        raise ValueError(f"packaged weights are .safetensors files, got {place.name!r}")
    store = {name: _cast(np.asarray(x), dtype) for name, x in arrays.named(params).items()}
    if odd := sorted(name for name, x in store.items() if x.dtype not in _DTYPES.values()):
        raise ValueError(f"packaged weights hold no {store[odd[0]].dtype} arrays, but {odd[0]} is one")
    header = {"format": _FORMAT, "sha256": _digest(store, metadata), "metadata": metadata}
    data = safetensors.numpy.save(store, {_KEY: json.dumps(header, sort_keys=True)})
    place.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(place) as unfinished:
        unfinished.write_bytes(data)
    return len(data)


def load_weights(path: str, dtype: str | None = "float32") -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads weights that `save_weights` wrote.

    Args:
      path: the file.
      dtype: what floating-point arrays come back as, None as they are stored.

    Returns:
      Nested dict of NumPy arrays, and the metadata.

    Raises:
      CheckpointNotFound: no such file, or a file of another kind.
      CheckpointCorrupt: cut off, garbled or changed.
    """
    place, data = _bytes(path)
    header = _header(place, data)
    try:
        store = {name: _array(entry) for name, entry in safetensors.deserialize(data)}
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _corrupt(place, error) from error
    if _digest(store, header["metadata"]) != header["sha256"]:
        raise CheckpointCorrupt(f"{place} has changed since it was written (other SHA-256); get a fresh copy")
    params = arrays.nested({name: _cast(x, dtype) for name, x in store.items()})
    return params, header["metadata"]


def read_metadata(path: str) -> dict[str, Any]:
    """What the file says about its weights."""
    return _header(*_bytes(path))["metadata"]


def is_ours(path: str) -> bool:
    """Whether `save_weights` wrote a file; nothing but its header is read.

    Raises:
      CheckpointNotFound: no such file, or no `.safetensors`.
      CheckpointCorrupt: cut off or garbled.
    """
    place = _file(path)
    with place.open("rb") as file:
        data = file.read(8)
        size = int.from_bytes(data, "little")
        return _KEY in _texts(place, data + file.read(min(size, _LARGEST_HEADER)))


def _bytes(path: str) -> tuple[epath.Path, bytes]:
    place = _file(path)
    return place, place.read_bytes()


def _file(path: str) -> epath.Path:
    place = epath.Path(path)
    if not place.exists():
        raise CheckpointNotFound(f"no such weights: {place}")
    if place.is_dir() or place.suffix != ".safetensors":
        raise CheckpointNotFound(
            f"{place} is not a .safetensors file; other formats (.bin, .pt, .ckpt, .pkl) can run code "
            "when they are opened and are not read"
        )
    return place


def _texts(place: epath.Path, data: bytes) -> dict[str, str]:
    """The texts in the header of a file that begins with `data`."""
    try:
        size = int.from_bytes(data[:8], "little")
        if len(data) < 8 or size > len(data) - 8:
            raise ValueError(f"a header of {size} bytes in a file of {len(data)}")
        return files.from_json(data[8 : 8 + size]).get("__metadata__") or {}
    except (ValueError, AttributeError) as error:
        raise _corrupt(place, error) from error


def _header(place: epath.Path, data: bytes) -> dict[str, Any]:
    texts = _texts(place, data)
    if _KEY not in texts:
        raise CheckpointNotFound(f"{place} was not written by process_gen: it does not say for which model")
    try:
        header = files.from_json(texts[_KEY])
        known = header["format"] == _FORMAT and {"sha256", "metadata"} <= set(header)
    except (ValueError, KeyError, TypeError) as error:
        raise _corrupt(place, error) from error
    if not known:
        raise CheckpointNotFound(f"{place} was written by another version (format {header['format']})")
    return header


def _corrupt(place: epath.Path, error: Exception) -> CheckpointCorrupt:
    return CheckpointCorrupt(f"{place} is cut off or garbled ({error}); get a fresh copy")


def _array(entry: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])


def _cast(x: np.ndarray, dtype: str | None) -> np.ndarray:
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return np.ascontiguousarray(x.astype(jnp.dtype(dtype)) if dtype and floating else x)


def _digest(store: dict[str, np.ndarray], metadata: Any) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(store):
        digest.update(f"{name} {store[name].dtype} {store[name].shape}\n".encode())
        digest.update(store[name].tobytes())
    return digest.hexdigest()
