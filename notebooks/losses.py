# %% [markdown]
# # A loss of your own: write it, see it, compare it
#
# One question: is my loss better than the one there is? This page shows what a loss sees, evaluates one on a batch in seconds, and
# trains it against the old one on the same batches and noise, with several seeds, to tell a difference from chance.

# %% install

# %%
from process_gen.experiment import cli  # first: it quietens the libraries below

# isort: split
import tempfile

import jax
import jax.numpy as jnp
from process_gen import lab, losses

SMALL = bool(os.environ.get("PROCESS_GEN_SMALL"))  # for the tests of this page
STEPS, SEEDS = (3, 2) if SMALL else (60, 3)

base = cli.load_config("configs/scenes.py:debug")
base.data.data_dir = tempfile.mkdtemp()
base.eval.loss_batches = 1 if SMALL else 8
base.train.batch_size = max(2 if SMALL else 4, jax.device_count())  # a row or more for every device

# %% [markdown]
# ## What a loss sees
#
# A row of a batch: every token by its stage, where it stands, what it sees, what it predicts and which losses it carries.

# %%
lab.batch(base)

# %% [markdown]
# ## Write it
#
# A loss returns values and weights, one of each for every token, and the table does the rest. This one is the error of the velocity
# without its square, with more weight where the picture is nearly done. It shows the mean of that weight besides.


# %%
@losses.register("late_l1", stages=("sketch", "refine"))
def late_l1(outputs, batch, labels, key, *, stage):
    """|v_hat - v|, times 2 (1 - t): t = 1 is noise."""
    late = 2 * (1 - outputs.t)[..., None]  # [B, S, J, 1]
    values = late * jnp.abs(outputs.velocity - outputs.target).mean(-1)  # [B, S, J, I]
    turns = batch.image_weight * (outputs.has_target & losses.of_stage(batch, stage))  # [B, S]
    return losses.Term(values, jnp.broadcast_to(turns[:, :, None, None], values.shape), {"late": late})


# %% [markdown]
# ## See it
#
# On one batch, with the model as it begins: values, what is counted, and which parts of the model it moves. Weights that depend on
# predictions, values that are no numbers and gradients that are none are named here.

# %%
lab.try_loss(late_l1, base)

# %% [markdown]
# ## Compare it
#
# Both arms get the same first parameters, batches, noise and timesteps with each seed. The losses of the first arm measure both; the
# table says what differs by more than the seeds do. Change the loss and run these cells again: every call trains afresh, in memory,
# and says what changed. Interrupt it, and what there is comes back.

# %%
mine = base.copy_and_resolve_references()
with mine.unlocked():
    mine.losses.sketch_flow = dict(loss="late_l1", stage="sketch", weight=10.0)

found = lab.compare({"base": base, "mine": mine}, steps=STEPS, seeds=SEEDS, evaluations=1 if SMALL else 4)
found

# %% [markdown]
# ## From here
#
# - `process_gen/losses/README.md`: all that a loss is given, frozen networks, pixels, schedules of weights.
# - The same row in a config file trains at full size: `python -m process_gen.train --config=configs/mine.py --workdir=runs/mine`.
