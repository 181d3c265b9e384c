"""What a user gets wrong on a command line is one line on stderr and exit code 2."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

from process_gen.experiment import cli

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "scenes.py")


def run(*arguments: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key not in cli.QUIET}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


# ------------------------------------------------- flags, before slow imports

BAD_FLAGS = [
    (["--config.train.stepz=3", "--workdir=x"], "config.train.stepz'; did you mean config.train.steps?"),
    (["--config.train.steps=abc", "--workdir=x"], "--config.train.steps=abc: invalid literal"),
    (["--config=configs/scenes.py:tiny", "--workdir=x"], "no variant 'tiny'; it has debug, quick, full"),
    (["--config=nowhere.py", "--workdir=x"], "no config file 'nowhere.py'"),
    (["--workdr=x"], "'workdr'. Did you mean: workdir"),
    ([], "--workdir=FOLDER is required"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_FLAGS, ids=[m for _, m in BAD_FLAGS])
def test_bad_flags_of_training_are_one_line(arguments, message):
    done = run("-m", "process_gen.train", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr and not done.stdout


def test_a_tilde_is_the_home_folder_in_flags_and_configs(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/a")
    argv = ["x", "--workdir=~/runs", "--compare=~/a.json,~/b.json", "--prompts=~/x", "--a=b~/c", "~/d"]
    expected = ["--workdir=/home/a/runs", "--compare=/home/a/a.json,/home/a/b.json", *argv[3:]]
    assert cli.words_at_home(argv)[1:] == expected
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(): return ConfigDict(dict(data=dict(path='~/data', name='a~')))"
    )
    config = cli.load_config(str(mine))
    assert (config.data.path, config.data.name) == ("/home/a/data", "a~")


def test_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.load_config("configs/scenes.py:debug").train.steps == 4
    for words in (
        ["--config=configs/scenes.py:debug", "--a"],
        ["--config", "configs/scenes.py:debug", "--a"],
    ):
        assert cli._without_config(words, "other.py") == (["--a"], "configs/scenes.py:debug")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "scenes.py").write_text("def get_config(): return 3")
    with pytest.raises(cli.CommandError, match="returns a int, not a ConfigDict"):  # the one that is here
        cli.load_config("configs/scenes.py")


SCRIPT = """
import sys
from process_gen.experiment import cli
if __name__ == "__main__":
    cli.read_flags(config={config!r})
from absl import flags, logging
def main(argv):
    steps = flags.FLAGS.config.train.steps
    logging.info("working")
    if steps == 7: raise KeyError("unknown loss 'x';\\nthere is y")
    if steps == 8: raise RuntimeError("a bug")
    print("steps", steps, "tensorflow" in sys.modules, "jax" in sys.modules)
if __name__ == "__main__":
    cli.run(main, (KeyError, OSError))
"""


@pytest.fixture
def script(tmp_path) -> str:
    path = tmp_path / "command.py"
    path.write_text(SCRIPT.format(config=f"{CONFIG}:debug"))
    return str(path)


def test_flags_are_read_once_and_nothing_heavy_comes_with_them(script):
    done = run(script, "--config.train.steps=3")
    assert (done.returncode, done.stdout.strip()) == (0, "steps 3 False False"), done.stderr


def test_an_expected_error_is_one_line_and_a_bug_keeps_its_traceback(script):
    expected = run(script, "--config.train.steps=7")
    assert expected.returncode == 2
    assert expected.stderr.splitlines() == ["error: unknown loss 'x'; there is y"]
    bug = run(script, "--config.train.steps=8")
    assert bug.returncode == 1 and "Traceback" in bug.stderr and "a bug" in bug.stderr
    wordy = run(script, "--config.train.steps=7", "--verbosity=1")
    assert wordy.returncode == 1 and "Traceback" in wordy.stderr


def test_a_command_whose_reader_has_gone_ends_without_a_word(script):
    words = [sys.executable, script, "--config.train.steps=3"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert (process.wait(timeout=60), process.stderr.read()) == (141, "")


def test_words_that_are_no_flags_are_refused(script):
    done = run(script, "--config.train.profile", "extra")
    assert done.returncode == 2 and done.stderr == "error: unexpected arguments: extra\n"


# ------------------------------------------------------------ without process


@pytest.fixture
def config():
    return cli.load_config(f"{CONFIG}:debug")


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("train.stepz", ["train.steps"]),
        ("turns", ["layout.turns"]),
        ("seeds", ["seed"]),
        ("steps", ["train.steps"]),
        ("optimzer.learning_rate", ["optimizer.learning_rate", "optimizer.muon_learning_rate"]),
        ("optimzer.warmup_steps", ["optimizer.warmup_steps"]),
        ("flow_steps", ["sampling.flow_steps"]),
    ],
)
def test_the_nearest_keys_are_suggested(config, key, near):
    assert sorted(cli.nearest_keys(key, config)) == near


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.optimizer.lr=1", "config.optimizer has b1, .*learning_rate"),
        ("--config.train=3", "config.train is a group of keys, set one of them: .*batch_size"),
        ("--noconfig.train.profil", "did you mean config.train.profile"),
        ("-config.train.steps.x=1", "unknown config key 'config.train.steps.x'"),
    ],
)
def test_keys_that_cannot_be_set(config, argument, message):
    with pytest.raises(cli.CommandError, match=message):
        cli.check_overrides(config, [argument])


def test_an_entry_takes_what_it_may_set_and_does_not():
    full, critiques = "configs/scenes.py:full", "configs/scenes.py:hung_critiques"
    clean = cli.config_with(full, ["--config.losses.sketch_flow.timesteps=clean"]).losses.sketch_flow
    assert clean.to_dict() == dict(loss="flow_mse", stage="sketch", weight=10.0, timesteps="clean")
    words = ["loss=spatial_consistency", "threshold=0.5", "pool=kept"]
    other = cli.config_with(full, [f"--config.losses.sketch_flow.{word}" for word in words]).losses
    assert (other.sketch_flow.threshold, other.sketch_flow.pool) == (0.5, "kept")
    teacher = cli.config_with(critiques, ["--config.data.sources.teacher.wrong=0.5"]).data.sources.teacher
    assert teacher.to_dict() == dict(weight=0.6, wrong=0.5)
    four = cli.config_with(critiques, ["--config.data.mixture.four_objects=2"]).data.mixture
    assert four.to_dict() == {"four_objects": 2.0}
    with pytest.raises(
        cli.CommandError, match="is a group of keys, set one of them: single_object, two_object"
    ):
        cli.config_with(critiques, ["--config.data.mixture={}"])
    two = ["--config.data.sources.critiques.stages=('plan',)"]
    assert cli.config_with(critiques, two).data.sources.critiques.stages == ("plan",)
    for word, message in [
        ("data.sources.teacher.on_error=skip", "unknown config key 'config.data.sources.teacher.on_error'"),
        ("losses.sketch_flow.timestep=clean", "did you mean config.losses.sketch_flow.timesteps?"),
        ("data.sources.teacher.wrongs=1", "did you mean config.data.sources.teacher.wrong?"),
    ]:
        with pytest.raises(cli.CommandError, match=re.escape(message)):
            cli.config_with(critiques, [f"--config.{word}"])


def test_keys_that_can_be_set_pass(config):
    cli.check_overrides(config, ["--config.train.steps=3", "--noconfig.train.profile", "--workdir=config.x"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:", "line 1: "),
        ("import nothing_of_this_name", "line 1: ModuleNotFoundError: No module named"),
        ("def get_config(_):\n    return _debug()", "line 2: NameError: name '_debug' is not defined"),
        ("x = 1", r"has no function get_config\(\)"),
        ("def get_config():\n    return {}", "has no variants"),
    ],
)
def test_files_that_are_no_configs(tmp_path, monkeypatch, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(cli.CommandError, match=message):
        cli.load_config(f"{path}:debug")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cli.CommandError, match=message):
        cli.load_config("mine.py:debug")


@pytest.mark.parametrize("status, code", [(503, 1), (403, 2)])
def test_what_a_bucket_answers_is_one_line_and_final_only_if_it_refuses(status, code):
    program = (
        "import gcsfs.retry; from process_gen.experiment import cli\n"
        f"def main(argv): raise gcsfs.retry.HttpError(dict(code={status}, message='an answer'))\n"
        "cli.run(main)"
    )
    ran = run("-c", program)
    assert ran.returncode == code
    assert ran.stderr.splitlines()[-1] == f"error: a bucket failed (an answer, {status})"
