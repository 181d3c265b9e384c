"""What a set holds, as one digest: a data file that changed is noticed, whatever its length.

Reading hundreds of gigabytes takes minutes, so the digest of each file is kept beside it, with
its length and time; only a file that is new or was written again is read.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
from collections.abc import Sequence

from absl import logging

from process_gen.common import files
from process_gen.data.formats.places import Place

SIDECAR = ".sha256.json"
THREADS = 8


def digest(place: Place, names: Sequence[str]) -> str:
    """SHA-256 of the contents of some files in their order, in hexadecimal digits.

    Raises:
      OSError: one cannot be read.
    """
    known = _known(place)
    stamps = {name: list(place.stamp(name)) for name in names}
    fresh = [name for name in names if not _holds(known.get(name), stamps[name])]
    if fresh:
        logging.info("reading %d files of %s once, to know them by content", len(fresh), place.root)
        with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
            for name, found in zip(fresh, threads.map(lambda name: _sha256(place, name), fresh), strict=True):
                known[name] = [*stamps[name], found]
        content = json.dumps(known, sort_keys=True).encode()
        place.keep(SIDECAR, content, "reads all files")
    return hashlib.sha256("".join(known[name][2] for name in names).encode()).hexdigest()


def _sha256(place: Place, name: str) -> str:
    with place.open(name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _holds(entry: object, stamp: list) -> bool:
    """Whether what is kept is of the file that is there now."""
    return isinstance(entry, list) and len(entry) == 3 and bool(stamp[1]) and entry[:2] == stamp


def _known(place: Place) -> dict[str, list]:
    try:
        with place.open(SIDECAR) as file:
            found = files.from_json(file.read())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}
