"""Where a sampler's rows go on a mesh."""

from __future__ import annotations

import functools
from typing import Any

from absl import logging
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from process_gen.distributed import sharding
from process_gen.models import partition


def sampler_placement(mesh: Mesh | None, rows: int) -> dict[str, Any]:
    """Keyword arguments for a `Sampler` whose weights are sharded over a mesh; {} for one device."""
    if mesh is None or mesh.size == 1:
        return {}
    if not (axes := sharding.sampling_axes(rows, mesh)):
        logging.warning(
            "sampling: %d rows do not divide over data and fsdp: every device draws them all", rows
        )
    return dict(
        sharding=NamedSharding(mesh, P(axes)),
        ambient=functools.partial(partition.on_mesh, mesh, sharding.ACTIVATION_RULES),
    )
