# %% [markdown]
# # The same run on several meshes: what each device holds, and what moves
#
# This notebook answers: what changes when a training is spread over devices? It runs two steps of the smallest model on three meshes of eight simulated
# CPU devices, compares the parameters, and shows where they lie and what the devices send each other. Nearly all of the time is compilation, of six
# train steps. Change first: `MESHES`.
#
# The first cell installs the package; on Colab put the project's address into `ADDRESS`, or upload its wheel. The second should print `8 devices`.

# %% install

# %%
from process_gen.experiment import cli  # import it first: it silences the logs of TensorFlow and XLA
import tempfile
import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)  # both before JAX first uses a device; else restart the kernel

import numpy as np
from process_gen.capacity import fit, topology
from process_gen.compile import compile_train
from process_gen.reports.table import table
from process_gen.train import train
from process_gen.training import amounts

print(f"{jax.device_count()} devices")

# %% [markdown]
# ## Configure
#
# Only `config.mesh` differs. `data` splits the rows of a batch, `fsdp` rows and parameters, `tensor` attention heads and the MLP, `context` the tokens
# of a row. The model code does not know the mesh: parameters have logical axes, and one table (`distributed/sharding.py`) maps these to mesh axes.
# Sizes multiply to 8. Keep the mesh `data`, with which the others are compared, and `tensor` at 1: the smallest model has one key/value head.

# %%
MESHES = {"data": dict(data=8), "fsdp": dict(fsdp=8), "both": dict(data=2, fsdp=4)}
folder = tempfile.mkdtemp()


def on_mesh(sizes):
    """The smallest config, eight rows a step, on a mesh of these sizes; other axes have size 1."""
    config = cli.load_config("configs/scenes.py:debug")
    config.train.update(dict(batch_size=8, steps=2, checkpoint_every=2))
    config.optimizer.warmup_steps = 1
    config.eval.final_per_group = 0  # no benchmark at the end
    config.data.data_dir = f"{folder}/data"
    config.mesh.update(dict(data=1) | sizes)
    return config


# %% [markdown]
# One training for each mesh, with the same seed and batches. The output says where the time went.

# %%
states = {name: train(on_mesh(sizes), f"{folder}/run_{name}") for name, sizes in MESHES.items()}

# %% [markdown]
# ## Compare the parameters
#
# All meshes compute the same numbers, up to rounding: the table has the relative distance of each run's parameters from those of `data`.

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
# ## Where parameters lie
#
# Two matrices of each expert (`gen`, `und`), all layers in one array: the whole shape, the mesh axis that splits each dimension, and the shape of one
# device's part. On the mesh `data` every device holds the whole array.

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
# `compile_train` compiles the train step without running it. The table has what one device receives in a step, by collective and mesh axes. Compare
# `data`, which has to sum gradients, with `fsdp`, which also has to gather parameters. `report["memory"]` has the bytes on one device.
# `python -m process_gen.compile` prints all of it, also for chips that are not there: `--topology=v5p:4x4x4`, `--topology=h100:8`.

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
# ## Where to go next
#
# - `process_gen/distributed/README.md`: the axes, several slices, how to check whether a model fits.
# - `launch/README.md`: pods, Slurm, GKE. `launch/CAPACITY.md`: the 7B model on hardware from 8 to 4,096 chips.
