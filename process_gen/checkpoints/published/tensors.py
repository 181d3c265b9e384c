"""`.safetensors` files, read and written tensor by tensor, in one file or in shards with an index.

A file is eight bytes that give the length of a JSON header, the header, and the data. Nothing that it says is
trusted, and nothing is mapped into memory: a read takes what it was asked for (all of a tensor, or some of
its rows) and no more. In writing, the header is known before the data, so tensors are streamed to disk.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from process_gen.checkpoints.errors import CheckpointCorrupt, CheckpointError, CheckpointNotFound
from process_gen.common.files import from_json, read_json, whole, write_json

DTYPES = {
    "BF16": jnp.dtype(jnp.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "BOOL": np.dtype(bool),
}
SUFFIX = ".safetensors"
INDEX = ".safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LARGEST_HEADER = 100 << 20
Progress = Callable[[int], None]
"""Is called with the number of bytes written since its last call."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a file; its data begin `offset` bytes from the start of the file."""

    path: epath.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Tensors(dict[str, Entry]):
    """The tensors of one file, or of many with an index, by name; data are read on demand.

    `place` is the path for messages, `texts` the `__metadata__` in the header of a single file.
    """

    def __init__(
        self, place: epath.Path, entries: Mapping[str, Entry], texts: Mapping[str, Any] | None = None
    ):
        super().__init__(entries)
        self.place, self.texts = place, texts or {}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """A tensor, or its rows from `start` to `stop`, as it is stored (not writable)."""
        entry = self[name]
        rows, *inner = entry.shape or (1,)  # a single number is one row
        count = max(0, (rows if stop is None else min(stop, rows)) - start)
        row = math.prod(inner) * entry.dtype.itemsize
        with entry.path.open("rb") as file:
            file.seek(entry.offset + start * row)
            data = file.read(count * row)
        if len(data) != count * row:
            raise _corrupt(entry.path, f"it ends inside {name}")
        return np.frombuffer(data, entry.dtype).reshape((count, *inner) if entry.shape else ())


def open_file(path: epath.PathLike) -> Tensors:
    """The tensors of one `.safetensors` file.

    Raises:
      CheckpointNotFound: no such file, or one of another kind.
      CheckpointCorrupt: cut off, longer than it says, or with a header that makes no sense.
    """
    path = epath.Path(path)
    if path.suffix != SUFFIX:
        raise CheckpointNotFound(_refusal(path, [path.name]))
    if not path.is_file():
        raise CheckpointNotFound(f"no such weights: {path}")
    size = path.stat().length
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise _corrupt(path, f"a header of {length} bytes in a file of {size}")
        text = file.read(length)
    try:
        header = from_json(text)
        texts = dict(header.pop("__metadata__", None) or {})
        rows = sorted((*_row(path, name, value), name) for name, value in header.items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _corrupt(path, f"its header cannot be read ({error})") from error
    entries, at = {}, 0
    for begin, end, dtype, shape, name in rows:
        if begin != at or end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
            raise _corrupt(path, f"{name} of {dtype} {list(shape)} cannot lie at bytes {begin} to {end}")
        entries[name], at = Entry(path, DTYPES[dtype], shape, 8 + length + begin), end
    if 8 + length + at != size:
        raise _corrupt(path, f"its header tells of {8 + length + at} bytes, the file has {size}")
    return Tensors(path, entries, texts)


def _row(path: epath.Path, name: str, value: Any) -> tuple[int, int, str, tuple[int, ...]]:
    """Begin, end, dtype and shape of a header's entry."""
    dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    if not all(type(x) is int and x >= 0 for x in (*shape, begin, end)):
        raise ValueError(f"{name} has shape {list(shape)} and offsets {begin}, {end}")
    if dtype not in DTYPES:
        raise CheckpointNotFound(
            f"{path}: {name} is stored as {dtype}, which cannot be read: get one that is not quantized"
        )
    return begin, end, dtype, shape


def open_index(path: epath.PathLike) -> Tensors:
    """The tensors of a sharded checkpoint, of which `path` is the index.

    Raises:
      CheckpointCorrupt: it cannot be read, names a file outside its folder, or a shard is missing, broken or
        holds other tensors than it says.
    """
    path = epath.Path(path)
    try:
        files = read_json(path)["weight_map"]
        shards = sorted(set(files.values()))
        for shard in shards:
            place = pathlib.PurePosixPath(shard)
            if not place.parts or ".." in place.parts or place.is_absolute() or {"\\", ":"} & set(shard):
                raise CheckpointCorrupt(f"{path} names a file outside its folder, {shard!r}: do not trust it")
            if not shard.endswith(SUFFIX):
                raise CheckpointNotFound(_refusal(path, [shard]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _corrupt(path, f"it is no index of shards ({type(error).__name__}: {error})") from error
    missing = [shard for shard in shards if not (path.parent / shard).is_file()]
    if missing:
        held = sum(shard in missing for shard in files.values())
        raise CheckpointCorrupt(
            f"{path.parent} lacks {len(missing)} of {len(shards)} shards, with {held} tensors in them: "
            f"{', '.join(missing[:4])}; download what is missing"
        )
    entries: dict[str, Entry] = {}
    for shard in shards:
        found = open_file(path.parent / shard)
        named = {name for name, file in files.items() if file == shard}
        if odd := sorted(named ^ set(found)):
            where = "missing in" if odd[0] in named else "only in"
            raise _corrupt(
                path, f"it does not match {shard}: {odd[0]} is {where} the shard ({len(odd)} such)"
            )
        entries |= found
    return Tensors(path, entries)


def find(folder: epath.PathLike, stems: Iterable[str]) -> Tensors | None:
    """Opens the first `<stem>.safetensors` in a folder, one file or sharded; None where there is none.

    Raises:
      CheckpointNotFound: only pickles are there.
      CheckpointCorrupt: see `open_file` and `open_index`.
    """
    folder = epath.Path(folder)
    for stem in stems:
        if (folder / (stem + SUFFIX)).exists():
            return open_file(folder / (stem + SUFFIX))
        if (folder / (stem + INDEX)).exists():
            return open_index(folder / (stem + INDEX))
    if pickles := sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES):
        raise CheckpointNotFound(_refusal(folder, pickles))
    return None


def find_in(folder: epath.PathLike, stems: Collection[str], hint: str = "") -> Tensors:
    """As `find`, but raises CheckpointNotFound where there is none; `hint` ends that message."""
    folder = epath.Path(folder)
    if not folder.is_dir():
        raise CheckpointNotFound(f"no such folder of published weights: {folder}")
    if (found := find(folder, stems)) is None:
        names = " or ".join(stem + SUFFIX for stem in stems)
        raise CheckpointNotFound(f"{folder} holds no {names}, alone or in shards{hint}")
    return found


def _refusal(place: epath.Path, names: list[str]) -> str:
    return (
        f"{place}: {', '.join(names[:3])} cannot be read. Only .safetensors can: pickles "
        f"({', '.join(PICKLES)}) can run code when they are opened. Get the weights as .safetensors"
    )


def _corrupt(path: epath.Path, what: str) -> CheckpointCorrupt:
    return CheckpointCorrupt(f"{path} is cut off or garbled ({what}); get a fresh copy")


# ---------------------------------------------------------------------- writing


@dataclasses.dataclass(frozen=True)
class Item:
    """A tensor to write; `blocks()` yields its rows in order, in blocks of any number of rows."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[np.ndarray]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def of(cls, name: str, array: np.ndarray) -> Item:
        """The item of an array in memory."""
        return cls(name, array.dtype, array.shape, lambda: [array])


def write(
    folder: epath.PathLike,
    stem: str,
    items: Sequence[Item],
    largest: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes `<stem>.safetensors`, or `<stem>-00001-of-0000N.safetensors` and their index.

    A file holds at most `largest` bytes of data, or one tensor that has more; None writes a single file.
    `progress` is called with the numbers of bytes written.

    Raises:
      CheckpointError: the folder already holds weights of this name.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if there := sorted(p.name for p in folder.glob(f"{stem}*") if SUFFIX in p.name):
        raise CheckpointError(f"{folder} already holds {there[0]}: choose another folder, or move it away")
    shards: list[list[Item]] = [[]]
    for item in items:
        if largest is not None and shards[-1] and sum(x.nbytes for x in shards[-1]) + item.nbytes > largest:
            shards.append([])
        shards[-1].append(item)
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        part = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        write_file(folder / f"{stem}{part}{SUFFIX}", shard, progress)
        places |= {item.name: f"{stem}{part}{SUFFIX}" for item in shard}
    if len(shards) > 1:
        total = sum(item.nbytes for item in items)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        write_json(folder / (stem + INDEX), index, indent=1)


def write_file(
    path: epath.Path,
    items: Sequence[Item],
    progress: Progress | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Writes one file, which appears whole or not at all; `texts` become `__metadata__` in its header."""
    header: dict[str, object] = {"__metadata__": texts or {"format": "pt"}}
    at = 0
    for item in items:
        header[item.name] = {
            "dtype": _NAMES[item.dtype],
            "shape": list(item.shape),
            "data_offsets": [at, at + item.nbytes],
        }
        at += item.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # data start at a multiple of eight
    with whole(path) as unfinished, unfinished.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for item in items:
            for block in item.blocks():
                data = np.ascontiguousarray(block, item.dtype)
                file.write(data.reshape(-1).view(np.uint8).data)
                if progress is not None:
                    progress(data.nbytes)
