# %% [markdown]
# # Quickstart: train a tiny model, sample from it, add a loss
#
# A process-driven model does not draw an image in one go. It **plans** a stroke in words, **sketches** it, **inspects** the draft, and **refines**
# it where the inspection found an error, until it decides to stop ([arXiv 2604.04746](https://arxiv.org/abs/2604.04746)).
#
# This notebook answers: what does such a model read and write, and how is it trained? It takes a minute or two on a CPU, most of it
# compilation, and needs no accelerator. Change first: the prompt in "A training example", then `steps` in `debug_config`.

# %% [markdown]
# ## Install
#
# In a checkout just run the next cell. On Colab, first put the address of the project into `ADDRESS`, or upload its wheel to the working
# folder (`pip wheel --no-deps .` in a checkout makes one). The cell after it prints the devices that JAX has found.

# %% install

# %%
from process_gen.experiment import cli  # import it first: it silences the logs of TensorFlow and XLA
import jax
from IPython.display import Image, display

device = jax.devices()[0]
print(f"{jax.device_count()} x {device.device_kind} ({device.platform})")

# %% [markdown]
# ## A training example
#
# The data are pictures of coloured shapes on a grid. A program, the *teacher*, turns a prompt into steps; with probability `wrong` a draft has a
# planted error, which the inspection names and the refinement corrects. This cell makes examples until one has a correction. Compare each
# `inspect` line with its image; an arrow leads from a draft to its correction. The judge, also a program, checks the final image.

# %%
import itertools
import numpy as np
from process_gen import scenes
from process_gen.reports.strip import strip

request = scenes.read_request("a red circle left of a blue square")
for seed in itertools.count():
    trajectory = scenes.teach(request, np.random.default_rng(seed), wrong=0.5)
    if any(turn.refines for turn in trajectory.turns):
        break
for step in trajectory.steps:
    print("plan   ", step.plan.instruction)
    print("inspect", step.inspect)
    for turn in step.refines:
        print("refine ", turn.instruction)
display(strip(trajectory))
print("judge:", "right" if scenes.judge(request, trajectory.image).correct else "wrong")

# %% [markdown]
# ## What the model is trained on
#
# A config is a Python file; `:debug` is its smallest variant. `lab.batch` shows a row of the first batch, a line for each token or image: the
# lines that it attends to (`sees`), its target (`predicts`) and its losses. `noised_0` and so on are noised copies of an image, for the flow loss.

# %%
import pathlib
import tempfile
from process_gen import lab
from process_gen.train import train

folder = pathlib.Path(tempfile.mkdtemp())


def debug_config(steps=10):
    config = cli.load_config("configs/scenes.py:debug")
    config.train.steps = config.train.checkpoint_every = steps
    config.train.batch_size = max(2, jax.device_count())  # at least one row for every device
    config.eval.final_per_group = 0  # no benchmark at the end
    config.data.data_dir = str(folder / "data")
    return config


lab.batch(debug_config())

# %% [markdown]
# ## Train
#
# `train` is what `python -m process_gen.train` calls: it makes the data set if there is none, trains, saves checkpoints and plots a curve for
# every loss. It resumes a run that it finds in its folder, so every training here gets a new one. The output says where the time went.


# %%
def train_afresh(config):
    """Trains in a new folder, shows the losses, and returns the folder."""
    workdir = tempfile.mkdtemp(dir=folder)
    print(f"a new run in {workdir}")  # known even if you interrupt the cell
    train(config, workdir)
    display(Image(f"{workdir}/losses.png", width=560))
    return workdir


first = train_afresh(debug_config())

# %% [markdown]
# ## Sample
#
# `load_sampler` reads the checkpoint of a run; without a folder it loads the trained weights that ship with the package. After ten steps a
# two-layer model draws little more than colours. Look at the structure instead: texts and images in turn, ended by the `model`, which
# decides when to stop, or by the `cap`, the most turns that the config allows (two here).

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
# A loss is a pure function of the model's outputs, the batch, the labels and a random key. It returns values and weights, unreduced; training
# sums both over the whole batch and divides once. This one is the flow loss on the image tokens that a turn *changes*, so that a new stroke
# counts more than the rest of the canvas. Axes: B rows, S turns of a row, J noised copies, I image tokens. The cell prints nothing.

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
# A row of `config.losses` turns it on, beside the losses that are there: look for `loss/stroke` in the plot. To change the loss, edit it and
# run both cells again; each time the model is trained from the start.

# %%
config = debug_config()
with config.unlocked():
    config.losses.stroke = dict(loss="stroke_mse", stage="sketch", weight=0.5)

second = train_afresh(config)

# %% [markdown]
# ## Where to go next
#
# - `python -m process_gen.train --config=configs/scenes.py:quick --workdir=runs/quick` trains a model that draws what it is asked for, in minutes.
# - The other notebooks: `trajectories` edits what a model drew, `your_data` fine-tunes, `losses` tests a loss over seeds, `sharding` compares meshes.
# - `README.md` has the method, its words and the map of the code; `CONTRIBUTING.md` says how to add a data source, a judge or a model size.
