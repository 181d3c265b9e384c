# %% [markdown]
# # Your own data: from a folder to a fine-tuned model
#
# One question: how do my trajectories get into a model? This page writes a small set with a rule of its own, has it checked, looks at a row
# as it is trained, fine-tunes the weights that ship with the package, and draws a prompt before and after.

# %% install

# %%
from process_gen.experiment import cli  # first: it quietens the libraries below

# isort: split
import itertools
import json
import pathlib
import tempfile

import jax
from IPython.display import Image, display
from PIL import Image as Picture
from PIL import ImageDraw
from process_gen import lab
from process_gen.reports.strip import strip
from process_gen.train import train
from process_gen.checkpoints.shipped import shipped_weights
from process_gen.weights.restore import load_sampler

SMALL = bool(os.environ.get("PROCESS_GEN_SMALL"))  # for the tests of this page
STEPS = 3 if SMALL else 60

folder = pathlib.Path(tempfile.mkdtemp())

# %% [markdown]
# ## A folder
#
# One JSON object a line in `trajectories.jsonl`, images beside it. In this set a picture is painted in two steps: first the whole image in
# one colour, then a square on it. Put your own folder into `mine` and leave this cell out; Parquet, tar shards and a dozen public sets are
# read as well (`process_gen/data/README.md`).

# %%
COLOURS = {
    "red": (220, 50, 47),
    "blue": (38, 84, 200),
    "green": (60, 160, 60),
    "yellow": (240, 200, 40),
    "purple": (130, 60, 160),
}
mine = folder / "mine"
mine.mkdir()
lines = []
for number, (ground, colour) in enumerate(itertools.permutations(COLOURS, 2)):
    painted = Picture.new("RGB", (32, 32), COLOURS[ground])
    painted.save(mine / f"{number}_a.png")
    ImageDraw.Draw(painted).rectangle((9, 9, 22, 22), fill=COLOURS[colour])
    painted.save(mine / f"{number}_b.png")
    turns = [
        {
            "instruction": f"paint the image {ground}",
            "description": f"everything {ground}",
            "image": f"{number}_a.png",
        },
        {
            "instruction": f"add a {colour} square",
            "description": f"a {colour} square over {ground}",
            "image": f"{number}_b.png",
        },
    ]
    turns = [{**turn, "inspect": "all as planned"} for turn in turns]
    lines.append(json.dumps({"prompt": f"a {colour} square over {ground}", "turns": turns}))
(mine / "trajectories.jsonl").write_text("\n".join(lines))
print(lines[0])

# %% [markdown]
# ## Is it sound?
#
# `check` reads everything and says what is wrong and where, how long the texts are against the layout, and what a row is used for.
# In a terminal it is `python -m process_gen.data check mine --config=configs/scenes.py:quick`.

# %%
said = subprocess.run(
    [sys.executable, "-m", "process_gen.data", "check", str(mine), "--config=configs/scenes.py:quick"],
    capture_output=True,
    text=True,
)
print(said.stdout or said.stderr)

# %% [markdown]
# ## What is trained
#
# The config of a fine-tuning is that of a training with the place of the data and the weights to start from. A row shows every token by its
# stage, what it sees and which losses it carries.

# %%
config = cli.load_config("configs/scenes.py:quick")
with config.unlocked():
    config.data.update(dict(source="folder", path=str(mine), validation=0.0))
    config.train.batch_size = max(4, jax.device_count())  # a row or more for every device
    config.train.update(
        dict(init=shipped_weights(), steps=STEPS, checkpoint_every=STEPS, log_every=max(STEPS // 10, 1))
    )
    config.optimizer.update(dict(warmup_steps=STEPS // 10 + 1, muon_learning_rate=5e-3, learning_rate=1e-3))
    config.eval.final_per_group = 0  # the benchmarks ask for scenes, which this set is not

lab.batch(config)

# %% [markdown]
# ## Train
#
# The same function as `python -m process_gen.train`. What knows the scenes is drawn before; the tuned run is drawn after.

# %%
workdir = str(folder / "run")
train(config, workdir)
display(Image(f"{workdir}/losses.png", width=560))

# %%
prompt = "a red square over blue"
for name, path in (("before", None), ("after", workdir)):
    sampler, _ = load_sampler(path, rows=1, flow_steps=4 if SMALL else 16, max_turns=3)
    print(name)
    display(strip(sampler.sample([prompt], seed=0)[0]))

# %% [markdown]
# ## From here
#
# - `process_gen/data/README.md`: every field of a record, masks and numbers for losses of your own, mixtures of sources, what is held out.
# - `configs/README.md`: freezing, rates by group, LoRA.
# - Longer texts need wider slots (`config.layout.before`), and words that the scenes lack cost a token a letter: take a Qwen2 tokenizer
#   (`config.data.tokenizer`) with a model that was trained with it.
