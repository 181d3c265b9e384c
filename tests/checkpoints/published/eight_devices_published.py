"""Runs in a process of its own, since a process counts its devices once."""

from __future__ import annotations

import pathlib
import tempfile

import jax

jax.config.update("jax_num_cpu_devices", 8)

import numpy as np  # noqa: E402

from process_gen import convert  # noqa: E402
from process_gen.checkpoints import arrays  # noqa: E402
from process_gen.checkpoints.published import import_bagel, read_published, stream  # noqa: E402
from process_gen.checkpoints.store import CheckpointStore  # noqa: E402
from process_gen.data.tokenizers import scenes_tokenizer  # noqa: E402
from process_gen.distributed import sharding  # noqa: E402
from process_gen.distributed.mesh import MeshConfig, make_mesh  # noqa: E402
from process_gen.experiment import builders, cli  # noqa: E402
from process_gen.models.spec import model_spec  # noqa: E402
from process_gen.weights.origin import read_weights  # noqa: E402
from process_gen.weights.start import load_onto_devices  # noqa: E402
from tests.checkpoints.published.conftest import GOLDEN  # noqa: E402

ROOT = pathlib.Path(__file__).parents[3]


def check(tree, wanted, shardings) -> None:
    """The same numbers, placed as they should be."""
    tree, wanted = arrays.flatten(tree), arrays.flatten(wanted)
    assert tree.keys() == wanted.keys()
    for name, x in tree.items():
        assert x.sharding == shardings[name], name
        np.testing.assert_array_equal(x, wanted[name])
    up = tree["backbone/layers/und/up_proj/kernel"]
    assert {s.data.shape for s in up.addressable_shards} == {(3, 32, 56)}


def main() -> None:
    """Straight into a mesh, and by way of a step that was cut for it."""
    published = read_published(GOLDEN)
    params, _ = import_bagel(published)
    sizes = {"data": 2, "fsdp": 2, "tensor": 2}
    mesh = make_mesh(MeshConfig(**sizes))
    spec = {"params": model_spec(published.model)}
    shardings = arrays.flatten(sharding.state_shardings(spec, mesh)["params"])
    config = cli.load_config(f"{ROOT}/configs/bagel_7b.py:debug")
    model = builders.build_model(config, scenes_tokenizer())
    direct, _ = load_onto_devices(read_weights(GOLDEN), model, mesh=mesh)
    check(direct, params, shardings)
    print("imported")

    source = published.params
    shards = convert.shards(published.model, source.spec, sizes)
    assert shards["backbone/layers/und/up_proj/kernel"] == (3, 32, 56)
    assert shards == {name: x.addressable_shards[0].data.shape for name, x in arrays.flatten(direct).items()}
    with tempfile.TemporaryDirectory() as folder:
        stream.write_step(folder, {"ema": (source, shards)}, {})
        like = {n: jax.ShapeDtypeStruct(s, np.float32, sharding=shardings[n]) for n, s in source.spec.items()}
        with CheckpointStore(folder) as store:
            check(store.restore({"ema": arrays.unflatten(like)})["ema"], params, shardings)
    print("streamed")


main()
