# %% [markdown]
# # A loss of your own: write it, try it, compare it
#
# This notebook answers: is my loss better than the one there is? It evaluates a loss on one batch, in seconds, then trains with it and without it on
# the same batches and noise, with several seeds, to tell a difference from chance. The comparison takes most of the time: two configs, three seeds,
# 60 steps each of the smallest model. Change first: `late_l1`, then `STEPS` and `SEEDS`.
#
# The first cell installs the package; on Colab put the project's address into `ADDRESS`, or upload its wheel. The second loads the config to compare with.

# %% install

# %%
from process_gen.experiment import cli  # import it first: it silences the logs of TensorFlow and XLA
import os
import tempfile
import jax
import jax.numpy as jnp
from process_gen import lab, losses

SMALL = bool(os.environ.get("PROCESS_GEN_SMALL"))  # set by the project's tests, to save time
STEPS, SEEDS = (3, 2) if SMALL else (60, 3)

base = cli.load_config("configs/scenes.py:debug")
base.data.data_dir = tempfile.mkdtemp()
base.eval.loss_batches = 1 if SMALL else 8  # batches of held-out data
base.train.batch_size = max(2 if SMALL else 4, jax.device_count())  # at least one row for every device

# %% [markdown]
# ## What a loss sees
#
# `lab.batch` shows a row of the first batch, one line for each token or image: its stage, the lines that it attends to (`sees`), its target
# (`predicts`) and the losses that count it. Find `sketch_flow`, the loss that is replaced below: it counts the noised copies of images.

# %%
lab.batch(base)

# %% [markdown]
# ## Write it
#
# A loss returns unreduced values and weights of one shape; training sums both and divides once. This one is the absolute error of the velocity, times
# a factor that is larger where there is less noise. `Term` also takes metrics to log, here that factor. Axes: B rows, S turns of a row, J noised
# copies, I image tokens. Weights must not depend on what the model predicts. Nothing is printed.


# %%
@losses.register("late_l1", stages=("sketch", "refine"))
def late_l1(outputs, batch, labels, key, *, stage):
    """|v_hat - v|, times 2 (1 - t): t = 1 is noise."""
    late = 2 * (1 - outputs.t)[..., None]  # [B, S, J, 1]
    values = late * jnp.abs(outputs.velocity - outputs.target).mean(-1)  # [B, S, J, I]
    turns = batch.image_weight * (outputs.has_target & losses.of_stage(batch, stage))  # [B, S]
    return losses.Term(values, jnp.broadcast_to(turns[:, :, None, None], values.shape), {"late": late})


# %% [markdown]
# ## Try it
#
# `lab.try_loss` evaluates the loss on one batch, with an untrained model: values, how many tokens count, gradient norms by part of the model. Look
# at the first lines: problems stand there in capitals, such as values that are not finite. Weights that depend on predictions are an error.

# %%
lab.try_loss(late_l1, base)

# %% [markdown]
# ## Compare it
#
# `mine` has the new loss in place of `flow_mse` for sketches. With each seed both configs begin with the same parameters and get the same batches,
# noise and timesteps. Both are measured by the losses of `base` on held-out data. In the table, read `difference` (mine minus base), its interval over
# seeds, and the verdict: `less`, `more` or `no difference seen`. To change the loss, edit it and run these cells again: every call trains from the
# start, in memory, and names what changed. If you interrupt it, it returns what it has measured so far.

# %%
mine = base.copy_and_resolve_references()
with mine.unlocked():
    mine.losses.sketch_flow = dict(loss="late_l1", stage="sketch", weight=10.0)

found = lab.compare({"base": base, "mine": mine}, steps=STEPS, seeds=SEEDS, evaluations=1 if SMALL else 4)
found

# %% [markdown]
# ## Where to go next
#
# - `process_gen/losses/README.md`: all that a loss is given, frozen networks, pixels, schedules of weights, and how far to trust `compare`.
# - For a full training write loss and row into a config file, as shown there: `python -m process_gen.train --config=configs/mine.py --workdir=runs/mine`.
