# %% [markdown]
# # Your own data: from a folder to a fine-tuned model
#
# This notebook answers: how do I fine-tune on my own trajectories? It writes a small example set, checks it, shows how it is trained, fine-tunes the
# weights that ship with the package, and draws a prompt before and after. It trains 60 steps of `configs/scenes.py:quick`, about half a second each
# on two CPU cores; compilation comes on top. Change first: `mine`, for a folder of your own, then `prompt` and `STEPS`.
#
# The first cell installs the package; on Colab put the project's address into `ADDRESS`, or upload its wheel. The second prints nothing.

# %% install

# %%
from process_gen.experiment import cli  # import it first: it silences the logs of TensorFlow and XLA
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import jax
from IPython.display import Image, display
from PIL import Image as Picture, ImageDraw
from process_gen import lab
from process_gen.reports.strip import strip
from process_gen.train import train
from process_gen.weights.restore import load_sampler

SMALL = bool(os.environ.get("PROCESS_GEN_SMALL"))  # set by the project's tests, to save time
STEPS = 3 if SMALL else 60
folder = pathlib.Path(tempfile.mkdtemp())

# %% [markdown]
# ## Write the data
#
# A set is a folder with `trajectories.jsonl`, one JSON object per line, and its images. In this one an image is painted in two turns: first all of it
# in one colour, then a square on it. The cell prints the first line. For your own folder run `mine = pathlib.Path("...")` instead of this cell.
# Parquet, tar shards and a dozen public sets are read as well (`process_gen/data/README.md`).

# %%
COLOURS = {
    "red": (220, 50, 47),
    "blue": (38, 84, 200),
    "green": (60, 160, 60),
    "yellow": (240, 200, 40),
    "purple": (130, 60, 160),
}
mine = folder / "mine"
mine.mkdir(exist_ok=True)
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
# ## Check the data
#
# `check` reads every text and image. Look first at `bad trajectories` and at the column `too long` (texts that their slot cannot hold): both should be 0.
# `suggested` has a layout that holds all texts: set its keys in `config.layout` below. The last table shows how the first trajectory is trained.

# %%
said = subprocess.run(
    [sys.executable, "-m", "process_gen.data", "check", str(mine), "--config=configs/scenes.py:quick"],
    capture_output=True,
    text=True,
)
print(said.stdout + (said.stderr if said.returncode else ""))

# %% [markdown]
# ## Configure the training
#
# Fine-tuning takes the config of a training, with the path of your data, the weights to start from (`init`), and lower learning rates. `lab.batch`
# shows a row of the first batch, a line for each token or image: the lines that it attends to (`sees`), its target, and the losses that count it.

# %%
config = cli.load_config("configs/scenes.py:quick")
with config.unlocked():
    config.data.update(dict(source="folder", path=str(mine), validation=0.0))  # nothing is held out
    config.train.batch_size = max(4, jax.device_count())  # at least one row for every device
    config.train.update(
        dict(init="scenes", steps=STEPS, checkpoint_every=STEPS, log_every=max(STEPS // 10, 1))
    )
    config.optimizer.update(dict(warmup_steps=STEPS // 10 + 1, muon_learning_rate=5e-3, learning_rate=1e-3))
    config.eval.final_per_group = 0  # no benchmark at the end: it asks for scenes

lab.batch(config)

# %% [markdown]
# ## Train
#
# `train` is what `python -m process_gen.train` calls. It resumes a run that it finds in its folder, so this cell makes a new folder each time.
# The output says where the time went, and has a curve for every loss.

# %%
workdir = tempfile.mkdtemp(dir=folder)
train(config, workdir)
display(Image(f"{workdir}/losses.png", width=560))

# %% [markdown]
# The next cell draws a prompt of the training set with the shipped weights, then with yours. Does the tuned model paint the whole image first?

# %%
prompt = "a red square over blue"
for name, path in (("before", None), ("after", workdir)):
    sampler, _ = load_sampler(path, rows=1, flow_steps=4 if SMALL else 16, max_turns=3)
    print(name)
    display(strip(sampler.sample([prompt], seed=0)[0]))

# %% [markdown]
# ## Where to go next
#
# - `process_gen/data/README.md`: every field of a record, masks and numbers for losses of your own, mixtures of sources, held-out data, the 7B model.
# - `configs/README.md`: freezing, learning rates by group, LoRA.
# - Longer texts need wider slots (`config.layout.before`). The tokenizer `scenes` spells words that it does not know letter by letter; for other
#   texts take a Qwen2 tokenizer (`config.data.tokenizer`) and a model that was trained with it.
