# %% [markdown]
# # The same run on a mesh: what lies where, and what moves
#
# One question: what changes when a training is spread over devices? This page makes eight devices of one CPU, trains the smallest model on
# three meshes, shows that all of them arrive at the same parameters, where these lie, and what the devices send each other.

# %% install

# %%
from process_gen.experiment import cli  # first: it quietens the libraries below

# isort: split
import tempfile

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update(
    "jax_num_cpu_devices", 8
)  # before the first array; on a TPU or with GPUs leave both lines out

import numpy as np
from process_gen.capacity import fit, topology
from process_gen.compile import compile_train
from process_gen.reports.table import table
from process_gen.train import train
from process_gen.training import amounts

MESHES = {"data": dict(data=8), "fsdp": dict(fsdp=8), "both": dict(data=2, fsdp=4)}
folder = tempfile.mkdtemp()
print(f"{jax.device_count()} devices")


def on_mesh(sizes):
    """The smallest config, eight rows a step, on a mesh of these sizes."""
    config = cli.load_config("configs/scenes.py:debug")
    config.train.update(dict(batch_size=8, steps=2, checkpoint_every=2))
    config.optimizer.warmup_steps = 1
    config.eval.final_per_group = 0
    config.data.data_dir = f"{folder}/data"
    config.mesh.update(dict(data=1) | sizes)
    return config


# %% [markdown]
# ## Train
#
# Only `config.mesh` differs. `data` splits the rows of a batch, `fsdp` rows and parameters, `tensor` the heads and the MLP, `context` the
# tokens of a row. The model has no word about it: parameters carry logical axes, and one table maps them to the mesh.

# %%
states = {name: train(on_mesh(sizes), f"{folder}/run_{name}") for name, sizes in MESHES.items()}

# %% [markdown]
# ## Equal
#
# The same numbers come out, but for the order of sums.

# %%
leaves = {name: [np.asarray(x) for x in jax.tree.leaves(state.params)] for name, state in states.items()}


def apart(a, b):
    """The distance of two lists of arrays, relative to the length of the first."""
    squares = sum(np.square(x - y).sum() for x, y in zip(a, b, strict=True))
    return float(np.sqrt(squares / sum(np.square(x).sum() for x in a)))


distances = {name: apart(leaves["data"], found) for name, found in leaves.items()}
print(
    table(
        [(name, f"{far:.1e}") for name, far in distances.items()], ("mesh", "parameters from those of data")
    )
)
assert max(distances.values()) < 1e-4

# %% [markdown]
# ## Where it lies
#
# The matrices of one expert: the mesh axes that split each of their dimensions, and what one device holds.

# %%
rows = []
for name, state in states.items():
    for path, x in jax.tree_util.tree_leaves_with_path(state.params):
        label = "/".join(str(part.key) for part in path)
        if "gate_proj/kernel" in label or "q_proj/kernel" in label:
            rows.append(
                (name, label.split("layers/")[-1], x.shape, x.sharding.spec, x.sharding.shard_shape(x.shape))
            )
print(table(rows, ("mesh", "parameter", "whole", "split by", "on a device")))

# %% [markdown]
# ## What moves
#
# The report of `python -m process_gen.compile`: memory of one device, and what it receives in a step, by kind and axis. The same command says
# it of chips that are not there: `--topology=v5p:4x4x4`, `--topology=h100:8`.

# %%
eight = topology.get(topology.parse("cpu:8"))
for name, sizes in MESHES.items():
    report = compile_train(on_mesh(sizes), eight, fit.Ask(amounts.of_a_full_row), progress=lambda line: None)
    moved = [
        (one["kind"], " ".join(one["axes"]), f"{one['bytes'] / 2**20:.2f}", f"{one['runs']:.0f}")
        for one in report["traffic"]
    ]
    print(f"\n{name}: {dict(sizes)}\n" + table(moved, ("exchange", "axes", "MiB received", "times")))

# %% [markdown]
# ## From here
#
# - `process_gen/distributed/README.md`: the axes, slices, offload to the host, what fits where.
# - `launch/README.md`: pods, Slurm, GKE. `launch/CAPACITY.md`: the 7B model on hardware from 8 to 4,096 chips.
