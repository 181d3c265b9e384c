# %% [markdown]
# # Inside a trajectory: look, change a word or an image, go on
#
# One question: what does the model do with what it says and sees? This page draws prompts with the weights that ship with the package,
# looks at every turn, replaces a text and an image, and lets the model go on from there.

# %% install

# %%
import process_gen.experiment.cli  # first: it quietens the libraries below

# isort: split
import dataclasses

import numpy as np
from IPython.display import display
from process_gen import scenes
from process_gen.reports.strip import strip
from process_gen.weights.restore import load_sampler

SMALL = bool(os.environ.get("PROCESS_GEN_SMALL"))  # for the tests of this page

sampler, restored = load_sampler(rows=2, flow_steps=4 if SMALL else 16)  # or load_sampler("runs/quick", ...)

# %% [markdown]
# ## Draw
#
# A trajectory is a list of turns. A turn has the text before its image (a plan, or what to refine), the image, and the text after it
# (the inspection). `doubts` are the probabilities of a correction where the model chose whether to make one.

# %%
prompts = [
    "a purple triangle below a white circle, a green cross and a red square",
    "a red circle left of a blue square",
]
drawn = sampler.sample(prompts, seed=4)
for one in drawn:
    display(strip(one))
    right = scenes.judge(scenes.read_request(one.prompt), one.image).correct
    print(
        f"{len(one.turns)} turns, stopped by the {one.stopped}; the judge says", "right" if right else "wrong"
    )

# %%
trajectory = drawn[1]
for number, turn in enumerate(trajectory.turns, 1):
    print(number, "refine" if turn.refines else "plan", "|", turn.before, "|", turn.after)
print("doubts", [f"{doubt:.2f}" for doubt in trajectory.doubts or ()])

# %% [markdown]
# ## Change a text
#
# `continue_from` keeps the first turns as they stand and draws the rest. Here the inspection after the first image is put into the model's
# mouth: does it correct what it is told is wrong?

# %%
accused = dataclasses.replace(trajectory.turns[0], after="the circle should be green")
edited = dataclasses.replace(trajectory, turns=(accused, *trajectory.turns[1:]))
told = sampler.continue_from(edited, turns=1, seed=1)
display(strip(told))

# %% [markdown]
# ## Change an image
#
# The other way round: the words stay and the image is spoilt. All that was drawn in the first image is painted over; the inspection and
# what follows are the model's own.

# %%
blank = np.broadcast_to(trajectory.turns[0].image[:1, :1], trajectory.turns[0].image.shape)
spoilt = dataclasses.replace(trajectory.turns[0], image=blank, after=None)
seen = sampler.continue_from(dataclasses.replace(trajectory, turns=(spoilt,)), turns=1, seed=1)
display(strip(seen))
print("it says:", seen.turns[0].after)
print("it goes on with:", seen.turns[1].before if len(seen.turns) > 1 else "nothing")

# %% [markdown]
# ## Change who decides
#
# A planner or an inspector of your own is a function from situations to answers. This one plans one thing after the other, whatever the
# prompt says. The model draws.

# %%
from process_gen.trajectory.markup import Plan

PLANS = [
    Plan("add a red circle at b2", "red circle at b2"),
    Plan("add a blue square at b3", "red circle at b2 and blue square at b3"),
]


def planner(asked):
    """The next plan of each trajectory, None where it is done: with its drafts, not its corrections, counted."""
    done = [sum(not turn.refines for turn in one.turns) for one in asked]
    return [PLANS[count] if count < len(PLANS) else None for count in done]


planned = sampler.with_outside(planner).sample(prompts[1:], seed=0)[0]
display(strip(planned))
print("turns as planned:", len(planned.turns))

# %% [markdown]
# ## From here
#
# - `process_gen/sampling/README.md`: all settings, budgets, guidance, images in prompts.
# - What `python -m process_gen.sample` writes is a folder that training reads: `your_data.ipynb`.
# - `process_gen/evaluation/README.md` measures each stage over many prompts, with oracles in the place of a stage.
