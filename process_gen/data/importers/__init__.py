"""Sets of other projects as trajectories: one small module each, and this table.

An importer is `data.source` of a config, and what `python -m process_gen.data convert --from` reads.
What cannot be mapped is refused by name (`BadTrajectory`) and counted, never guessed.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Literal

from process_gen.common.names import check_name

if TYPE_CHECKING:
    from process_gen.data.stored import StoredSource

IMPORTERS = {
    "genref": "genref:GENREF",
    "unicot_reflection": "unicot:REFLECTION",
    "unicot_breakdown": "unicot:BREAKDOWN",
    "unireason": "unireason:UNIREASON",
    "irg": "irg:IRG",
    "magicbrush": "magicbrush:MAGICBRUSH",
    "verl_omni": "verl_omni:SEQUENCES",
    "verl_omni_atoms": "verl_omni:ATOMS",
    "zebra_cot": "zebra_cot:ZEBRA_COT",
    "thinkmorph": "thinkmorph:THINKMORPH",
    "bagel_t2i": "bagel:T2I",
    "bagel_edit": "bagel:EDIT",
}
"""By name, the module and the `Importer` in it."""
STORED = ("folder", "parquet", "webdataset", "records", *IMPORTERS)
"""Sources that `data.path` names."""


def open_imported(
    name: str,
    path: str | os.PathLike[str],
    image_size: tuple[int, int],
    bad: Literal["fail", "skip"] = "fail",
    budget: float | None = None,
) -> StoredSource:
    """The trajectories of a set of another project; see `StoredSource`.

    Args:
      name: one of `IMPORTERS`.
      path: a file, a folder, or a pattern of names, here or behind a URL.
      image_size: height and width that images are brought to.
      bad: what to do with what cannot be mapped.
      budget: the share of trajectories that `skip` may leave out; `allowance` by default.

    Raises:
      ValueError: an unknown name, or the set cannot be opened so.
      FileNotFoundError, BadTrajectory, TooManyBadTrajectories: as opening any set does.
    """
    from process_gen.data.stored import StoredSource

    module, _, attribute = IMPORTERS[check_name(name, IMPORTERS, "importer")].partition(":")
    importer = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    return StoredSource(importer.open(path), importer.form, image_size, bad, budget)
