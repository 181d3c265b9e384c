"""Writing `.safetensors` files tensor by tensor, in one file or in shards with an index.

A file's header is known before its data, so tensors go to disk as they come and none is kept.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from etils import epath

from process_gen.checkpoints.errors import CheckpointError
from process_gen.checkpoints.published.tensors import DTYPES, INDEX, SUFFIX

Progress = Callable[[int], None]
"""Is told how many bytes have been written since it was last told."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Item:
    """A tensor to write.

    Attributes:
      name, dtype, shape: as published.
      blocks: makes its rows, in order, as many at a time as it likes.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[np.ndarray]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def of(cls, name: str, array: np.ndarray) -> Item:
        """A tensor that is there already."""
        return cls(name, array.dtype, array.shape, lambda: [array])


def write(
    folder: epath.PathLike,
    stem: str,
    items: Sequence[Item],
    largest: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes `<stem>.safetensors`, or `<stem>-00001-of-0000N.safetensors` and their index.

    Args:
      folder: made if need be.
      stem: of the file names.
      items: in the order in which they are to be written.
      largest: bytes of data per file from which the next one is begun; None for one file.
      progress: is told of bytes written.

    Raises:
      CheckpointError: the folder already holds weights of this name.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if there := sorted(p.name for p in folder.iterdir() if p.name.startswith(stem) and SUFFIX in p.name):
        raise CheckpointError(f"{folder} already holds {there[0]}: choose another folder, or move it away")
    shards = _shards(items, largest)
    if len(shards) == 1:
        write_file(folder / (stem + SUFFIX), items, progress)
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}{SUFFIX}"
        write_file(folder / name, shard, progress)
        places |= {item.name: name for item in shard}
    total = sum(item.nbytes for item in items)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / (stem + INDEX)).write_text(json.dumps(index, indent=1))


def _shards(items: Sequence[Item], largest: int | None) -> list[list[Item]]:
    shards: list[list[Item]] = [[]]
    for item in items:
        if largest is not None and shards[-1] and sum(x.nbytes for x in shards[-1]) + item.nbytes > largest:
            shards.append([])
        shards[-1].append(item)
    return shards


def write_file(
    path: epath.Path,
    items: Sequence[Item],
    progress: Progress | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Writes one file, whole or not at all; `texts` stand in its header."""
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
    unfinished = path.parent / f"{path.name}.unfinished"
    with unfinished.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for item in items:
            written = 0
            for block in item.blocks():
                data = np.ascontiguousarray(block, item.dtype)
                file.write(data.reshape(-1).view(np.uint8).data)
                written += data.nbytes
                if progress is not None:
                    progress(data.nbytes)
            if written != item.nbytes:
                raise ValueError(f"{item.name} of shape {item.shape} came with {written} bytes")
    unfinished.replace(path)
