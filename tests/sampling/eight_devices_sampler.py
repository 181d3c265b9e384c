"""Runs in a process of its own, since a process counts its devices once. Takes weights, prints `ok`s."""

from __future__ import annotations

import sys

import jax

jax.config.update("jax_num_cpu_devices", 8)

import numpy as np  # noqa: E402

from process_gen.distributed.mesh import make_mesh, parse_mesh  # noqa: E402
from process_gen.trajectory.stages import Mode  # noqa: E402
from process_gen.weights.restore import load_sampler  # noqa: E402

PROMPTS = ["a red circle", "two blue stars", "a green square"]
MESHES = {"data=2,fsdp=2,tensor=2": 4, "data=8": 3, "data=1,tensor=2,context=4": 2}
"""Meshes, and rows side by side; 3 do not divide by 8, so there are 8."""


def draw(weights: str, rows: int, mesh: jax.sharding.Mesh | None):
    """Both trajectories and a weight of a sampler."""
    guidance = dict(text_scale=2.0, image_scale=1.5)
    settings = dict(flow_steps=2, max_turns=3, refine_threshold=0.0, mode=Mode.PROCESS, **guidance)
    sampler, restored = load_sampler(weights, rows=rows, mesh=mesh, **settings)
    return sampler.sample(PROMPTS, seed=1), jax.tree.leaves(restored.params)


def main(weights: str) -> None:
    """Compares every mesh with one device."""
    one, _ = draw(weights, 3, None)
    assert any(turn.refines for row in one for turn in row.turns)
    for text, rows in MESHES.items():
        mesh = make_mesh(parse_mesh(text))
        found, params = draw(weights, rows, mesh)
        assert all(len(x.sharding.device_set) == 8 for x in params)
        split = [x for x in params if x.addressable_shards[0].data.size < x.size]
        assert bool(split) == (mesh.shape["fsdp"] * mesh.shape["tensor"] > 1)
        for a, b in zip(one, found, strict=True):
            assert (a.prompt, a.stopped, len(a.turns)) == (b.prompt, b.stopped, len(b.turns))
            for x, y in zip(a.turns, b.turns, strict=True):
                assert (x.refines, x.before, x.after) == (y.refines, y.before, y.after)
                np.testing.assert_allclose(x.image.astype(int), y.image.astype(int), atol=1)
        print("ok", text, flush=True)


main(sys.argv[1])
