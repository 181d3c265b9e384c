"""SHA-256 of every file of a step, written before the step is committed and checked before it is read.

Orbax notices a missing or shortened file in most cases, and a flipped bit in almost none: it would return
wrong numbers without an error. Every host hashes what it has written itself (`BarrierWithHashes`); process 0
hashes the rest, which is little, and writes the manifest.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent import futures

import jax
from absl import logging
from etils import epath
from orbax.checkpoint import multihost
from orbax.checkpoint import path as ocp_path

from process_gen.checkpoints.errors import CheckpointCorrupt
from process_gen.common.buckets import is_bucket, names_below
from process_gen.common.files import read_json
from process_gen.distributed.agreement import first_message

NAME = "manifest.sha256.json"
_SHARE = "manifest.{}.json"  # hashes of one host, until they are in the manifest
_WRITTEN_BY = "ocdbt.process_{}"  # Orbax's folder, in an item, for what one host writes
_UNFINISHED = ocp_path.atomicity.TMP_DIR_SUFFIX  # of the names of folders that Orbax has not committed
_FORMAT = 1
# Written by Orbax when it commits, so after the manifest; nothing that is read depends on them.
_COMMIT_FILES = frozenset({"commit_success.txt", "_CHECKPOINT_METADATA"})
_CHUNK = 1 << 22
_THREADS = min(16, 2 * (os.cpu_count() or 1))  # hashing and reading release the GIL


def write(step_dir: epath.Path) -> None:
    """Writes the manifest of everything in the folder; hashes what no host has hashed yet."""
    files = {}
    for host in range(jax.process_count()):  # by name: a shared folder may list it late
        share = step_dir / _SHARE.format(host)
        # Files that it lacks are hashed below; all of them if it cannot be read.
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            files |= read_json(share)
            share.unlink()
    files |= _entries({name: path for name, path in _files(step_dir) if name not in files})
    text = json.dumps({"format": _FORMAT, "files": files}, indent=1, sort_keys=True)
    (step_dir / NAME).write_text(text)


class BarrierWithHashes:
    """A barrier for Orbax's `AsyncOptions`: each host hashes its files before it reports them as written."""

    def __init__(self, root: epath.Path):
        self._root, self._wait = root, multihost.get_barrier_sync_fn()

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Waits for all hosts. Orbax's `key` names what they wait for and, after a dot, the step."""
        what, _, step = key.rpartition(".")
        if "write_complete" in what:
            suffix = "" if is_bucket(self._root) else _UNFINISHED
            step_dir, host = self._root / f"{step}{suffix}", jax.process_index()
            try:
                mine = {}  # files that this host has written; these change no more
                for folder in step_dir.glob("*/" + _WRITTEN_BY.format(host)):
                    item = folder.parent.name.removesuffix(_UNFINISHED)
                    mine |= dict(_files(folder, f"{item}/{folder.name}/"))
                (step_dir / _SHARE.format(host)).write_text(json.dumps(_entries(mine)))
            except Exception as error:  # of a file system or of gcsfs; the others wait for this host
                logging.warning("left to the first host to hash: %s", error)
        self._wait(key=key, timeout_ms=timeout_ms)


def verify(
    step_dir: epath.Path, items: tuple[str, ...] | None = None, share: tuple[int, int] = (0, 1)
) -> None:
    """Raises CheckpointCorrupt, which names the first file of a step that is missing, cut off or changed.

    Checks the files of all `items`, or of some; a `share` (i, n) is every n-th file from file i on.
    """
    wanted = [(n, e) for n, e in _read(step_dir).items() if items is None or n.split("/")[0] in items]
    mine = dict(wanted[share[0] :: share[1]])
    for name in mine:
        if not (step_dir / name).exists():
            raise corrupt(step_dir, f"{name} is missing")
    digests = _digests(step_dir / name for name in mine)
    for (name, entry), (size, digest) in zip(mine.items(), digests, strict=True):
        if size != entry["bytes"]:
            raise corrupt(step_dir, f"{name} has {size} bytes instead of {entry['bytes']}")
        if digest != entry["sha256"]:
            raise corrupt(step_dir, f"{name} has changed since it was written (its SHA-256 differs)")


def wrong_on_a_host(step_dir: epath.Path, items: tuple[str, ...] | None = None) -> str:
    """What is wrong with a step, in words; "" where nothing is.

    Collective: every host of a job has to call it, and checks a share of the files.
    """
    mine = ""
    try:
        verify(step_dir, items, (jax.process_index(), jax.process_count()))
    except CheckpointCorrupt as error:
        mine = str(error)
    return first_message(mine)


def fingerprint(place: epath.Path) -> str:
    """A hash, 16 hex digits, of a file, of a step (its manifest), or of the `.safetensors` in a folder."""
    if place.is_file():
        return _digest(place)[1][:16]
    if (place / NAME).exists():
        return _digest(place / NAME)[1][:16]
    found = sorted(place.glob("*.safetensors"))
    return hashlib.sha256("".join(digest for _, digest in _digests(found)).encode()).hexdigest()[:16]


def items(step_dir: epath.Path) -> tuple[str, ...]:
    """The items that a step holds, by name."""
    return tuple(sorted({name.split("/")[0] for name in _read(step_dir)}))


def corrupt(step_dir: epath.Path, what: str) -> CheckpointCorrupt:
    """The exception for a step that cannot be trusted."""
    return CheckpointCorrupt(
        f"checkpoint step {step_dir.name} in {step_dir.parent} cannot be used: {what}. "
        "Restore the file from a copy, or move this folder away to continue from the step before it."
    )


def _read(step_dir: epath.Path) -> dict[str, dict]:
    path = step_dir / NAME
    try:
        manifest = read_json(path)
        files = manifest["files"]
        known = manifest["format"] == _FORMAT and all({"bytes", "sha256"} <= set(e) for e in files.values())
    except FileNotFoundError as error:
        raise corrupt(step_dir, f"{NAME} is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise corrupt(step_dir, f"{NAME} cannot be read ({error})") from error
    if not known:
        raise corrupt(step_dir, f"{NAME} has an unknown format")
    return files


def _files(folder: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    for name in names_below(folder):
        path, at_top = folder / name, not prefix and "/" not in name
        if path.name not in _COMMIT_FILES and not (at_top and path.match("manifest.*.json")):
            yield prefix + name, path


def _entries(files: Mapping[str, epath.Path]) -> dict[str, dict]:
    digests = zip(files, _digests(files.values()), strict=True)
    return {name: {"bytes": size, "sha256": digest} for name, (size, digest) in digests}


def _digests(paths: Iterable[epath.Path]) -> Iterator[tuple[int, str]]:
    """Bytes and SHA-256 of each file, many files at a time: Orbax splits a large state into many."""
    with futures.ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(_digest, paths)


def _digest(path: epath.Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as f:
        while chunk := f.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


class _LastManifest:
    """Writes the manifest of a step as the last file before the step is committed."""

    async def finalize(self) -> None:
        if self.get_final().name.isdigit():  # a step; its items are committed the same way
            await asyncio.to_thread(write, self.get())
        await super().finalize()


class _Renamed(_LastManifest, ocp_path.atomicity.AtomicRenameTemporaryPath):
    """Orbax's unfinished folder of a step on a file system."""


class _Marked(_LastManifest, ocp_path.atomicity.CommitFileTemporaryPath):
    """Orbax's unfinished folder of a step in a bucket, where it has its final name from the start."""


def temporary_path(root: epath.Path) -> type[ocp_path.atomicity.TemporaryPath]:
    """How Orbax is to write a step in this folder of checkpoints."""
    return _Marked if is_bucket(root) else _Renamed
