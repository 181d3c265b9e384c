# %% [markdown]
# # Look inside a trajectory, edit it, and let the model go on
#
# This notebook answers: does the model act on what it says and sees? It draws two prompts with the weights that ship with the package, shows every
# turn, replaces a text or an image, and lets the model go on from there. It trains nothing and draws five trajectories; on a CPU most of the time
# is compilation. Change first: `prompts` and the seed, then the text in "Change a text".
#
# The first cell installs the package; on Colab put the project's address into `ADDRESS`, or upload its wheel. The second loads the weights.

# %% install

# %%
import process_gen.experiment.cli  # import it first: it silences the logs of TensorFlow and XLA
import dataclasses
import os
import numpy as np
from IPython.display import display
from process_gen import scenes
from process_gen.reports.strip import strip
from process_gen.weights.restore import load_sampler

SMALL = bool(os.environ.get("PROCESS_GEN_SMALL"))  # set by the project's tests, to save time

sampler, restored = load_sampler(rows=2, flow_steps=4 if SMALL else 16)  # or load_sampler("runs/quick", ...)

# %% [markdown]
# ## Draw
#
# This cell draws the prompts and has a program, the judge, check the final images. In each strip look for an arrow: it leads from a draft to its
# correction. The weights know only prompts such as these, of shapes, colours, numbers and relations.

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

# %% [markdown]
# A turn has a text `before` its image (a plan, or what to refine), the image, and a text `after` it (the inspection). This cell prints both texts of
# each turn of the second prompt. `doubts` are the probabilities of a correction, one for each turn after which the model chose whether to correct.

# %%
trajectory = drawn[1]
for number, turn in enumerate(trajectory.turns, 1):
    print(number, "refine" if turn.refines else "plan", "|", turn.before, "|", turn.after)
print("doubts", [f"{doubt:.2f}" for doubt in trajectory.doubts or ()])

# %% [markdown]
# ## Change a text
#
# `continue_from` keeps the first `turns` as they are and draws the rest anew. Here the inspection of the first image is replaced by a false one.
# Does the next turn correct what the text says, although the image does not show it?

# %%
accused = dataclasses.replace(trajectory.turns[0], after="the circle should be green")
edited = dataclasses.replace(trajectory, turns=(accused, *trajectory.turns[1:]))
told = sampler.continue_from(edited, turns=1, seed=1)
display(strip(told))

# %% [markdown]
# ## Change an image
#
# Now the plan stays and the first image is replaced by a blank one, in the colour of its top left pixel. With `after=None` the model inspects it.
# Does its inspection say that the thing is missing, and does the next turn draw it?

# %%
blank = np.broadcast_to(trajectory.turns[0].image[:1, :1], trajectory.turns[0].image.shape)
spoilt = dataclasses.replace(trajectory.turns[0], image=blank, after=None)
seen = sampler.continue_from(dataclasses.replace(trajectory, turns=(spoilt,)), turns=1, seed=1)
display(strip(seen))
print("it says:", seen.turns[0].after)
print("it goes on with:", seen.turns[1].before if len(seen.turns) > 1 else "nothing")

# %% [markdown]
# ## Plan in the model's place
#
# A planner is a function from the trajectories so far to the next plan of each; an inspector may be replaced in the same way. This planner gives
# two fixed plans, a square below a circle, although the prompt says otherwise (b2: column b, row 2). Does the model draw the plan or the prompt?

# %%
from process_gen.trajectory.markup import Plan

PLANS = [
    Plan("add a red circle at b2", "red circle at b2"),
    Plan("add a blue square at b3", "red circle at b2 and blue square at b3"),
]


def planner(asked):
    """The next plan of each trajectory, None where it is done; corrections do not count as plans."""
    done = [sum(not turn.refines for turn in one.turns) for one in asked]
    return [PLANS[count] if count < len(PLANS) else None for count in done]


planned = sampler.with_outside(planner).sample(prompts[1:], seed=0)[0]
display(strip(planned))
print("turns as planned:", len(planned.turns))  # 2, and one more for every correction

# %% [markdown]
# ## Where to go next
#
# - `process_gen/sampling/README.md`: all settings, limits, guidance, images in prompts.
# - `python -m process_gen.sample` writes a folder that training can read: see `your_data.ipynb`.
# - `process_gen/evaluation/README.md`: measures each stage over many prompts, also with an exact planner or inspector in the model's place.
