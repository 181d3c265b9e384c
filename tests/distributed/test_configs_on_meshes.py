"""The state of every config splits over the meshes that one would choose for it; shapes only."""

from __future__ import annotations

import functools
import math
import pathlib

import jax
import pytest
from jax.sharding import AbstractMesh

from process_gen.distributed import sharding
from process_gen.distributed.mesh import AXES, MeshError
from process_gen.experiment import builders, cli
from process_gen.experiment.vocabulary import build_tokenizer
from process_gen.training.program import build_recipe
from process_gen.training.step import init_state
from process_gen.trajectory.batch import Batch

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
EIGHT = [(1, 8, 1, 1), (2, 2, 2, 1), (1, 2, 1, 4)]


@functools.cache
def state_of(spec: str):
    """The model's sizes and the abstract state of a config, with the modules' annotations."""
    config = cli.load_config(str(CONFIGS / spec)).unlock()
    if "7b.py:paper" in spec:
        config.data.tokenizer = "scenes"  # the published one is not here; the sizes are those of the model
    model = builders.build_model(config, build_tokenizer(config))
    recipe = build_recipe(config, model)
    batch = Batch.spec(model.layout, config.train.batch_size)
    init = functools.partial(init_state, recipe, batch)
    return model.config, jax.eval_shape(init, jax.random.key(0))


def shares(spec: str, sizes: tuple[int, ...]):
    """Bytes of the state on one device, and in all."""
    model, state = state_of(spec)
    mesh = AbstractMesh(sizes, AXES)
    sharding.heads_divide({"model.kv_heads": model.kv_heads, "model.heads": model.heads}, mesh)
    shardings = sharding.state_shardings(state, mesh)
    whole = held = 0
    for x, place in zip(jax.tree.leaves(sharding.unbox(state)), jax.tree.leaves(shardings), strict=True):
        size = 8 if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize
        whole += x.size * size
        held += math.prod(place.shard_shape(x.shape)) * size
    return held, whole


@pytest.mark.parametrize("sizes", EIGHT)
@pytest.mark.parametrize("spec", ["scenes.py:quick", "bagel_7b.py:debug", "bagel_7b.py:paper"])
def test_eight_devices(spec, sizes):
    held, whole = shares(spec, sizes)
    split = sizes[1] * sizes[2]
    assert whole / split <= held < whole
    if "paper" in spec:
        assert held < 1.1 * whole / split, "almost nothing is on every device"


def test_one_key_head_cannot_be_split_over_two_devices():
    with pytest.raises(MeshError, match="model.kv_heads=1 heads do not divide over tensor=2"):
        shares("scenes.py:debug", (2, 2, 2, 1))
    for sizes in ((1, 8, 1, 1), (1, 2, 1, 4)):
        shares("scenes.py:debug", sizes)


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 64, 1, 1), (1, 16, 4, 1), (1, 16, 1, 4), (2, 32, 1, 1),
        (2, 128, 1, 1), (1, 64, 4, 1), (1, 64, 1, 4), (1, 32, 2, 4), (4, 64, 1, 1), (1, 128, 2, 1),
        (4, 128, 1, 1), (1, 128, 4, 1), (1, 128, 1, 4), (8, 64, 1, 1),
    ],
)  # fmt: skip
def test_the_published_model_on_pods(sizes):
    """Parameters, their average and two moments in float32; almost nothing is on every device."""
    held, whole = shares("bagel_7b.py:paper", sizes)
    assert held < 1.2 * whole / (sizes[1] * sizes[2]), "a little above an even split"


def test_what_does_not_divide_is_named_with_a_way_out():
    with pytest.raises(MeshError, match="model.kv_heads=4 heads do not divide over tensor=8.*such as 4"):
        shares("bagel_7b.py:paper", (1, 8, 8, 1))
    with pytest.raises(MeshError, match=r"params/.*'embed' of 1152, .* over fsdp=256; .*such as 128"):
        shares("bagel_7b.py:paper", (1, 256, 1, 1))  # the width of the ViT
