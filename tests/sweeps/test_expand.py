"""From a sweep file to cells, flags, a manifest and lines for a scheduler."""

from __future__ import annotations

import json
import os
import pathlib
import shlex
import subprocess
import sys

import numpy as np
import pytest
import yaml

from process_gen import sweep as command
from process_gen.experiment import cli
from process_gen.sweeps import hyper, running
from process_gen.sweeps.cells import Cell, expand, flag, write_manifest
from process_gen.sweeps.hyper import SweepError

ROOT = pathlib.Path(__file__).parents[2]
SWEEPS = ROOT / "configs" / "sweeps"


def test_product_zip_and_chain():
    a, b = hyper.sweep("a", range(2)), hyper.sweep("b", ["x", "y"])
    assert hyper.product([a, b]) == [
        {"a": 0, "b": "x"}, {"a": 0, "b": "y"}, {"a": 1, "b": "x"}, {"a": 1, "b": "y"},
    ]  # fmt: skip
    assert hyper.zipit([a, b]) == [{"a": 0, "b": "x"}, {"a": 1, "b": "y"}]
    assert hyper.chainit([a, b]) == [{"a": 0}, {"a": 1}, {"b": "x"}, {"b": "y"}]
    found = hyper.product([hyper.zipit([a, b]), hyper.fixed("c", (1, 2))])
    assert found[1] == {"a": 1, "b": "y", "c": (1, 2)}
    assert hyper.zipit([a, hyper.fixed("c", 3, length=2)]) == [{"a": 0, "c": 3}, {"a": 1, "c": 3}]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hyper.sweep("a", []), r"sweep\('a', ...\) has no values"),
        (lambda: hyper.sweep("a", "xy"), "takes a list of values, got the text 'xy'"),
        (lambda: hyper.sweep("a", [b"x"]), "a takes finite numbers.* a bytes"),
        (lambda: hyper.sweep("a", [1, None]), "a takes .* got None"),
        (lambda: hyper.sweep("a", [float("nan")]), "a takes finite numbers"),
        (lambda: hyper.sweep("a", [(1, [2])]), r"a takes .* got \[2\], a list"),
        (lambda: hyper.zipit([hyper.sweep("a", [1]), hyper.sweep("b", [1, 2])]), "with 1 and 2 cells"),
        (lambda: hyper.product([hyper.sweep("a", [1]), hyper.sweep("a", [2])]), "a is set twice"),
        (lambda: expand(lambda _: {"a": 1}, "module", ""), "get_hyper.* returns .* not dict"),
        (lambda: expand(lambda _: [], "module", ""), "not nothing"),
        (lambda: expand(lambda _: [{"a": 1}], (), ""), "COMMAND is a module and its flags"),
        (lambda: expand(lambda _: [{"a": 1}], ("module", "--a=2"), ""), "--a is both swept and in COMMAND"),
    ],
)
def test_what_is_wrong_is_said(make, message):
    with pytest.raises(SweepError, match=message):
        make()


def test_flags_of_configs_of_settings_and_of_commands():
    assert flag("config.optimizer.learning_rate", 1e-05) == "--config.optimizer.learning_rate=1e-05"
    assert flag("config.a", (1, 2)) == "--config.a=(1, 2)"
    assert flag("config.a", True) == "--config.a=True"
    assert flag("sampling.text_scale", 2) == "--sampling=text_scale=2"
    assert flag("task_args.scenes.split", "train") == "--task_args=scenes.split=train"
    assert flag("seeds", (0, 1)) == "--seeds=0,1"
    assert flag("arms", "best_of=4") == "--arms=best_of=4"


def test_the_id_is_of_all_that_matters_and_each_cell_stands_once():
    cell = Cell({"a": 1}, ("module", "--a=1"), "0.1")
    assert cell.id == Cell({"a": 1}, ("module", "--a=1"), "0.1").id
    others = [("module", "--a=2"), ("other", "--a=1"), ("module", "--b", "--a=1")]
    ids = {cell.id, Cell({"a": 1}, ("module", "--a=1"), "0.2").id}
    assert len(ids | {Cell({"a": 1}, words, "0.1").id for words in others}) == 5
    twice = expand(lambda h: h.chainit([h.sweep("a", [1, 2]), h.sweep("a", [2, 3])]), "module", "")
    assert [one.settings["a"] for one in twice] == [1, 2, 3]


def test_a_cell_that_was_run_with_another_config_is_named(tmp_path, own_config):
    config, file = own_config("config.losses.plan_text.weight = 0.5"), tmp_path / "sweep.py"
    file.write_text(
        f'COMMAND = ("process_gen.train", "--config={config}")\n'
        'def get_hyper(hyper): return hyper.sweep("config.seed", [0, 1])'
    )
    before = command.load_sweep(str(file))
    assert len({cell.content for cell in before}) == 2 and before == command.load_sweep(str(file))
    done = before[0].folder(tmp_path) / running.DONE
    done.parent.mkdir(parents=True)
    done.write_text(json.dumps({"content": before[0].content}))
    own_config("config.losses.plan_text.weight = 0.25")
    after = command.load_sweep(str(file))
    assert [one.id for one in after] == [one.id for one in before]
    for cells, state in ((before, "done"), (after, "done, old config")):
        table = command.table_of(running.Sweep(cells, tmp_path)).splitlines()
        assert f" {state} " in f"{table[2]} " and " open " in f"{table[3]} "


@pytest.mark.parametrize(
    "row", ["None", "dict(weight=1.0)", 'dict(loss="nothing", stage="plan", weight=1.0)']
)
def test_a_row_without_a_loss_is_for_the_training_to_refuse(tmp_path, row, own_config):
    config, file = own_config(f"config.losses.mine = {row}"), tmp_path / "sweep.py"
    text = 'def get_hyper(hyper): return hyper.sweep("config.seed", [0])'
    file.write_text(f'COMMAND = ("process_gen.train", "--config={config}")\n{text}')
    assert command.load_sweep(str(file))[0].content
    file.write_text(
        f'COMMAND = ("process_gen.train", "--config={config}", "--config.train.steps", "5")\n{text}'
    )
    with pytest.raises(SweepError, match="write --config.train.steps=5 as one word"):
        command.load_sweep(str(file))


def test_numpy_values_are_plain_ones():
    (one, two) = hyper.sweep("x", np.array([1e-3, 2.0]))
    assert (type(one["x"]), one, two) == (float, {"x": 1e-3}, {"x": 2.0})
    assert flag("arm_args.planner.model", "m") == "--arm_args=planner.model=m"


def test_the_manifest_is_the_same_text_wherever_it_lies(tmp_path):
    cells = command.load_sweep(str(SWEEPS / "guidance.py"))
    first, second = (write_manifest(cells, tmp_path / name).read_bytes() for name in "ab")
    assert first == second and len(json.loads(first)["cells"]) == 36


def run(*words: str, **options) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=60, env=environment, **options
    )


def test_printed_lines_are_the_commands_for_a_shell(tmp_path):
    file, workdir = tmp_path / "mine.py", tmp_path / "a folder"
    file.write_text(
        'COMMAND = ("tiny_command", "--title=two words")\n'
        'def get_hyper(hyper): return hyper.sweep("prompt", ["it\'s $HOME", "a;b", "`c` *"])'
    )
    done = run("-m", "process_gen.sweep", f"--config={file}", f"--workdir={workdir}", "--jobs=print")
    assert done.returncode == 0, done.stderr
    cells = command.load_sweep(str(file))
    words = [["python", *cell.python_args(workdir)] for cell in cells]
    assert [shlex.split(line) for line in done.stdout.splitlines()] == words
    assert words[0][1:4] == ["-m", "tiny_command", "--title=two words"]
    said = subprocess.run(
        ["sh", "-c", f"set -- {done.stdout.splitlines()[0]}; printf '%s\\n' \"$@\""],
        capture_output=True, text=True,
    )  # fmt: skip
    assert said.stdout.splitlines() == words[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_hyper(hyper): return []", "has no COMMAND"),
        ('COMMAND = "m"', "has no function get_hyper()"),
        ('COMMAND = "m"\ndef get_hyper(hyper): return hyper.sweeep("a", [1])', "line 2: AttributeError"),
        ('COMMAND = "m"\ndef get_hyper(hyper): return hyper.sweep("a", [None])', "a takes finite numbers"),
        (
            'COMMAND = ("process_gen.train", "--config=configs/scenes.py:debug")\n'
            'def get_hyper(hyper): return hyper.sweep("config.optimizer.learning_rat", [1])',
            "did you mean config.optimizer.learning_rate",
        ),
        (
            'COMMAND = "process_gen.train"\ndef get_hyper(hyper): return hyper.sweep("config.seed", [1])',
            "COMMAND needs --config=FILE.py:VARIANT",
        ),
    ],
)
def test_a_broken_sweep_file_is_one_line(tmp_path, text, message):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises((SweepError, cli.CommandError)) as error:
        command.load_sweep(str(file))
    assert message in str(error.value)


# --------------------------------------------------------------- shipped sweeps

PARSE = """
import json, sys
from process_gen import evaluate
from process_gen.evaluation.arms import make_arm
from absl import flags
evaluate.define_flags()
for words in json.load(sys.stdin):
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["x", *words])
    [make_arm(arm) for arm in flags.FLAGS.arms]
print(flags.FLAGS.sampling, flags.FLAGS.output_dir)
"""


def test_the_guidance_sweep_is_read_by_evaluate(tmp_path):
    cells = command.load_sweep(str(SWEEPS / "guidance.py"))
    assert len(cells) == 3 * 4 * 3
    done = run("-c", PARSE, input=json.dumps([cell.python_args(tmp_path)[2:] for cell in cells[-1:]]))
    expected = f"['text_scale=4.0', 'flow_steps=32'] {cells[-1].folder(tmp_path)}"
    assert done.stdout.strip() == expected, done.stderr


TRAIN = """
from process_gen.experiment import cli
cli.define_host_flags()
cli.read_flags(config="configs/scenes.py:quick", workdir="Folder.")
from absl import flags
print(flags.FLAGS.workdir, flags.FLAGS.config.optimizer.name, flags.FLAGS.config.optimizer.learning_rate)
"""


def test_the_training_sweep_is_read_by_train(tmp_path):
    cells = command.load_sweep(str(SWEEPS / "learning_rate.py"))
    assert len(cells) == 7
    done = run("-c", TRAIN, *cells[5].python_args(tmp_path)[2:])
    assert done.stdout.split() == [str(cells[5].folder(tmp_path)), "adamw", "0.008"], done.stderr


def test_the_sweep_of_the_evidence_trains_every_arm_with_the_same_seeds():
    cells = command.load_sweep(str(SWEEPS / "evidence.py"))
    arms = ("hung", "hung_plan_only", "hung_single_pass", "hung_no_inspection")
    ablations = ("hung_no_inspection", "hung", "hung")
    found = [(cell.settings["config"], cell.settings["config.seed"]) for cell in cells]
    assert found == [(f"configs/scenes.py:{arm}", seed) for arm in arms + ablations for seed in (0, 1, 2)]
    assert len({cell.id for cell in cells}) == len(cells)
    for cell in cells:  # every key is one of the config
        cli.config_with(cell.settings["config"], [word for word in cell.command if "--config." in word])


def expanded(sweep: dict, values: dict[str, object]) -> list[str]:
    """A command of W&B's agent: `${args}` is `--name=value` for each parameter."""
    macros = {"${env}": ["/usr/bin/env"], "${args}": [f"--{name}={value}" for name, value in values.items()]}
    return [word for part in sweep["command"] for word in macros.get(part, [part])]


def test_the_sweep_of_wandb_is_read_by_train(tmp_path):
    sweep = yaml.safe_load((SWEEPS / "wandb.yaml").read_text())
    values = {"config.optimizer.learning_rate": 0.0123, "config.optimizer.name": "adamw", "config.seed": 2}
    assert values.keys() == sweep["parameters"].keys()
    stand_in = tmp_path / "python"
    stand_in.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    stand_in.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "WANDB_RUN_ID": "ab12"}
    given = subprocess.run(expanded(sweep, values), capture_output=True, text=True, env=env, check=True)
    words = given.stdout.splitlines()
    assert words[:2] == ["-m", "process_gen.train"]
    done = run("-c", TRAIN, *words[2:])
    assert done.stdout.split() == ["sweeps/wandb/ab12", "adamw", "0.0123"], done.stderr
