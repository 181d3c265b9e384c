"""Runs in a process of its own, since a process counts its devices once. Prints `ok` for every check.

python tests/training/eight_devices_memory.py FOLDER    # for the programs that XLA writes down
"""

from __future__ import annotations

import os
import pathlib
import re
import sys

DUMP = sys.argv[1]
os.environ["XLA_FLAGS"] = (
    f"--xla_backend_optimization_level=0 --xla_dump_to={DUMP} --xla_dump_hlo_pass_re=spmd-partitioning "
    "--xla_dump_hlo_module_re=.*train_step.*"
)

import dataclasses  # noqa: E402

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from process_gen.distributed import offload, sharding  # noqa: E402
from process_gen.distributed.mesh import MeshConfig, make_mesh  # noqa: E402
from process_gen.losses import LossTable  # noqa: E402
from process_gen.models import partition  # noqa: E402
from process_gen.models.config import UnrollOptions  # noqa: E402
from process_gen.models.unified import UnifiedModel  # noqa: E402
from process_gen.training.program import TrainProgram  # noqa: E402
from process_gen.training.step import Recipe  # noqa: E402
from process_gen.trajectory.batch import Batch  # noqa: E402
from tests.data.fake import fake_batch  # noqa: E402
from tests.models.test_remat import Stack  # noqa: E402
from tests.models.tiny import CONFIG, IDS, VOCAB, layout  # noqa: E402

TEXT = dict(weight=0.5, pool="text")
TABLE = LossTable(
    {
        "plan_text": dict(loss="text_cross_entropy", stage="plan", **TEXT),
        "plan_decision": dict(loss="decision_cross_entropy", stage="plan", **TEXT),
        "sketch_flow": dict(loss="flow_mse", stage="sketch", weight=1.0),
    }
)
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
WIDTH, MLP, LAYERS, CHUNK, ROWS = 32, 48, 2, 16, 16


def program(mesh: MeshConfig, devices: int = 8, where: str = "none", **model) -> TrainProgram:
    """Sixteen rows in two micro-batches."""
    config = dataclasses.replace(
        CONFIG,
        vocab_size=4 * VOCAB,
        width=WIDTH,
        mlp=MLP,
        layers=LAYERS,
        remat="full",
        **model,
    )
    recipe = Recipe(
        UnifiedModel(config, layout(), IDS),
        TABLE,
        UnrollOptions(),
        OPTIMIZER,
        lambda step: 1e-2,
        accumulate=2,
    )
    spec = Batch.spec(recipe.model.layout, ROWS)
    return TrainProgram(recipe, make_mesh(mesh, jax.devices()[:devices]), spec, where)


def two_steps(made: TrainProgram):
    """The state after two steps, and what they reported."""
    state, seen = made.create_state(jax.random.key(0)), []
    for seed in range(2):
        batch = Batch(**fake_batch(made.recipe.model.layout, ROWS, seed, VOCAB))
        state, metrics = made.step(state, sharding.shard_batch(batch, made.mesh))
        seen.append({name: float(value) for name, value in metrics.items()})
    assert jax.tree.map(lambda x: x.sharding, state) == made.shardings
    return state, seen


def check_numbers() -> None:
    """Chunks, sharded accumulation and offloading change nothing but rounding."""
    one, wanted = two_steps(program(MeshConfig(data=1), devices=1))
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    state, found = two_steps(program(mesh, where="optimizer+ema", logit_chunk=CHUNK))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        np.testing.assert_allclose(a["grad_norm"], b["grad_norm"], rtol=1e-4)
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert {x.sharding.memory_kind for x in moments + jax.tree.leaves(state.ema)} == {offload.HOST}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), state.params, one.params)


def partitioned() -> str:
    """The train step that was compiled last, as the partitioner left it: before anything CPU-specific."""
    found = sorted(pathlib.Path(DUMP).glob("*after_spmd-partitioning*"), key=lambda p: p.stat().st_mtime)
    return found[-1].read_text()


def results(text: str, kind: str = r"[\w-]+") -> set[tuple[int, ...]]:
    """Shapes of what instructions of a kind give."""
    found = re.findall(rf"= \w+\[([\d,]+)\]\S* {kind}\(", text)
    return {tuple(map(int, dims.split(","))) for dims in found}


def check_program() -> None:
    """What a device of eight holds and receives in the program of the last check."""
    text = partitioned()
    held, words = results(text), 4 * VOCAB
    # The patterns find what they should: each device's part of the weights of the MLP, and of the head.
    assert (LAYERS, WIDTH // 2, MLP // 2) in held and (WIDTH // 2, words // 2) in held
    for shape in ((LAYERS, WIDTH, MLP), (LAYERS, MLP, WIDTH), (WIDTH, words), (words, WIDTH)):
        assert shape not in held  # not the parameter, not its gradient, its moments or its average
    gathered = results(text, "all-gather")
    assert (WIDTH, MLP // 2) in gathered  # of one layer
    assert (WIDTH, CHUNK // 2) in gathered and (WIDTH, words // 2) not in gathered  # one part of the head


def check_dtype() -> None:
    """Weights are float32 where they rest, and travel in the dtype that they are used in."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    model = Stack(dataclasses.replace(CONFIG, width=WIDTH, mlp=MLP, dtype="bfloat16", remat="full"))
    spec = jax.ShapeDtypeStruct((8, 4, WIDTH), jnp.float32, sharding=sharding.batch_sharding(mesh))

    def init(key):
        return model.init(key, jnp.zeros(spec.shape))["params"]

    params = sharding.abstract_state(init, jax.random.key(0), mesh=mesh)

    @partition.on_mesh(mesh, sharding.ACTIVATION_RULES)
    def small_train_step(params, x):
        def loss(params):
            return jnp.square(model.apply({"params": params}, x.astype(jnp.bfloat16))).sum()

        return jax.grad(loss)(params)

    jax.jit(small_train_step).lower(params, spec).compile()
    text = partitioned()
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float32"}
    for shape in (f"{WIDTH},{MLP}", f"{MLP},{WIDTH}"):
        dtypes = re.findall(rf"= (\w+)\[{shape}\]\S* all-gather\(", text)
        assert dtypes and set(dtypes) == {"bf16"}, (shape, dtypes)


for check in (check_numbers, check_program, check_dtype):
    check()
    print("ok", flush=True)
