# %% [markdown]
# # process_gen: images in strokes
#
# A process-driven model does not draw a picture in one go. It **plans** a stroke in words, **sketches** it, **inspects** the
# draft, and **refines** it where the inspection found an error, until it decides to stop
# ([arXiv 2604.04746](https://arxiv.org/abs/2604.04746)).
#
# This page trains such a model at toy size, samples from it, and then trains it with a loss of your own.
# It takes a minute or two on a CPU, most of it compilation, and runs unchanged on a GPU or a TPU.

# %% [markdown]
# ## Install
#
# Inside a checkout nothing has to be set. Elsewhere (Colab), upload the wheel beside this page, or put the address of the
# project into `ADDRESS`.

# %% install

# %%
from process_gen.experiment import cli  # first: it quietens the libraries below

# isort: split
import jax
from IPython.display import Image, display

device = jax.devices()[0]
print(f"{jax.device_count()} x {device.device_kind} ({device.platform})")

# %% [markdown]
# ## A trajectory of the teacher
#
# The training data comes from a small world of coloured shapes. A *teacher* turns a prompt into steps: mostly right drafts, some
# with a planted error that the inspection names and the refinement repairs. This one has an error in it.

# %%
import itertools

import numpy as np

from process_gen import scenes
from process_gen.reports.strip import strip

request = scenes.read_request("a red circle left of a blue square")
seeds = map(np.random.default_rng, itertools.count())
trajectories = (scenes.teach(request, rng, "default", wrong=0.5) for rng in seeds)
trajectory = next(t for t in trajectories if any(turn.refines for turn in t.turns))
for step in trajectory.steps:
    print("plan   ", step.plan.instruction)
    print("inspect", step.inspect)
    for turn in step.refines:
        print("refine ", turn.instruction)
display(strip(trajectory))
print("judge:", "right" if scenes.judge(request, trajectory.image).correct else "wrong")

# %% [markdown]
# ## Train
#
# A config is a Python file; `:debug` is its smallest variant. `train` is the function behind `python -m process_gen.train`: it
# builds the data set if it is not there, trains, saves checkpoints, and plots the losses. A folder that holds a run is gone on
# with, so every training here gets one of its own. First, a row of what it reads: every token by its stage, what it sees, what
# it is taught and by which loss.

# %%
import tempfile

from process_gen.train import train

from process_gen import lab

folder = pathlib.Path(tempfile.mkdtemp())


def debug_config(steps=10):
    config = cli.load_config("configs/scenes.py:debug")
    config.train.steps = config.train.checkpoint_every = steps
    config.train.batch_size = max(2, jax.device_count())  # a row or more for every device
    config.eval.final_per_group = 0  # no benchmark at the end
    config.data.data_dir = str(folder / "data")
    return config


lab.batch(debug_config())


# %%
def train_afresh(config):
    """Trains in a new folder, shows the losses, and returns the folder."""
    workdir = tempfile.mkdtemp(dir=folder)
    print(f"a new run in {workdir}")  # it is there too if you interrupt the cell
    train(config, workdir)
    display(Image(f"{workdir}/losses.png", width=560))
    return workdir


first = train_afresh(debug_config())

# %% [markdown]
# ## Sample
#
# `load_sampler` reads a run's checkpoint. Ten steps of a two-layer model draw little more than colours; what matters here is the
# shape of what comes out: texts and images in turn, and a model that decides when to refine and when to stop.
# `load_sampler()` without a folder loads the trained weights that ship with the package.

# %%
from process_gen.weights.restore import load_sampler

sampler, restored = load_sampler(first, rows=2)
drawn = sampler.sample(["a red circle left of a blue square", "two green stars"], seed=0)
for one in drawn:
    print(f"{one.prompt!r}: {len(one.steps)} steps in {len(one.turns)} turns, stopped by the {one.stopped}")
display(strip(drawn[0]))

# %% [markdown]
# ## A loss of your own
#
# A loss is a pure function of the outputs, the batch and a key. It returns unreduced values and weights; the table sums them, divides
# once by the global weight, and logs the result. This one is the flow loss on those image tokens that a turn has to
# *change*, so that the new stroke counts more than the canvas that stays.

# %%
import jax.numpy as jnp

from process_gen import losses


@losses.register("stroke_mse")
def stroke_mse(outputs, batch, labels, key, *, stage):
    """Squared velocity error where the target differs from the image before the turn."""
    values = jnp.square(outputs.velocity - outputs.target).mean(-1)  # [B, S, J, I]
    changed = losses.changed(batch, values.shape[-1])  # [B, S, I], by pixels
    turns = batch.image_weight * (outputs.has_target & losses.of_stage(batch, stage))  # [B, S]
    weights = turns[:, :, None, None] * changed[:, :, None]
    return losses.Term(values, jnp.broadcast_to(weights, values.shape))


# %% [markdown]
# One line of config turns it on. Change the loss and run both cells again as often as you like: each time trains afresh.

# %%
config = debug_config()
with config.unlocked():
    config.losses.stroke = dict(loss="stroke_mse", stage="sketch", weight=0.5)

second = train_afresh(config)

# %% [markdown]
# ## From here
#
# - `python -m process_gen.train --config=configs/scenes.py:quick --workdir=runs/quick` trains a model that draws what it is asked for, in minutes.
# - `README.md` has the map of the code; the READMEs of `process_gen/losses` and `process_gen/data` have the table of losses and the format for trajectories of your own.
# - `losses.ipynb` tries a loss on a batch, and compares it with what there was, over seeds.
# - `CONTRIBUTING.md` says how to add a data source, a judge or a model size.
