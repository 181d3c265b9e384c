"""Saves one step from several processes; each prints, as JSON, the files that it has hashed itself.

Arguments: the folder of the run.
"""

from __future__ import annotations

import json
import sys

import jax
import jax.numpy as jnp

from process_gen.checkpoints import manifest
from process_gen.checkpoints.store import CheckpointStore
from process_gen.distributed import hosts


def main(workdir: str) -> None:
    hosts.initialize()
    hashed, digest = [], manifest._digest
    manifest._digest = lambda path: hashed.append(str(path)) or digest(path)
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    x = jax.device_put(jnp.arange(64.0).reshape(8, 8), rows)
    with CheckpointStore(workdir) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"params": {"x": x + step}})
        checkpoints.wait()
        print(json.dumps(hashed))
        manifest._digest = digest
        restored = checkpoints.restore({"params": {"x": x}}, step=2)["params"]["x"]
        for mine, wanted in zip(restored.addressable_shards, (x + 2).addressable_shards, strict=True):
            assert (mine.data == wanted.data).all()


if __name__ == "__main__":
    main(sys.argv[1])
