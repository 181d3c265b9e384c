"""The recipe as stages: every variant plans, keys follow what changes, and the whole of it runs."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from process_gen.data.formats.opening import open_stored
from process_gen.data.sources import data_of_sources
from process_gen.experiment import builders, cli
from process_gen.recipe import building, stages
from process_gen.recipe.__main__ import run
from process_gen.recipe.parts import RecipeError

ROOT = pathlib.Path(__file__).parents[2]
PAPER = ROOT / "configs" / "recipe" / "paper.py"
SIZES, ABLATIONS = (
    ("debug", "scenes", "paper", "bagel_7b"),
    re.findall(r"[ ](_\w+)", PAPER.read_text().split('"""')[1]),
)


def recipe(variant, **changes):
    config = cli.load_config(f"configs/recipe/paper.py:{variant}")
    config.update_from_flattened_dict(changes)
    return config


def test_the_docstring_names_the_ablations_that_there_are():
    assert {"_additions", "_rewrites", "_self_critique", "_symbolic", "_inspect_none"} <= {*ABLATIONS}
    with pytest.raises(cli.CommandError, match="has no variant 'nonsense'"):
        recipe("nonsense")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ablation", ["", *sorted({*ABLATIONS})])
def test_every_variant_makes_two_trainings_that_can_be(size, ablation, tmp_path):
    config = recipe(size + ablation)
    planned = stages.plan(config, tmp_path)
    names = [stage.name for stage in planned]
    assert names.index("multi_turn") < names.index("phase_1") < names.index("phase_2")
    first, second = (cli.load_config(f"{stages.STORED}:{tmp_path / phase}.json") for phase in stages.PHASES)
    for training in (first, second):
        builders.check(training)
    assert first.data.path == str(tmp_path / "multi_turn") and not first.sampling.inspections
    assert first.layout.after == 0
    sources = data_of_sources(second.data)
    assert {*sources} == {*stages.needed_subsets(config)}
    whole = len(sources) > 1
    assert second.sampling.inspections == whole
    assert (second.layout.after > 0) == whole
    assert second.train.init == str(tmp_path / "phase_1")
    assert ("samples" in names) == (
        whole and config.conflict.critique == "self_sampled" or "alignment" in sources
    )
    assert {*sources} <= {*names}


def test_ablations_are_those_of_the_paper():
    plain = recipe("debug_additions")
    assert plain.multi_turn.rewrites == 0 and stages.needed_subsets(plain) == ["multi_turn"]
    assert recipe("debug_rewrites").multi_turn.rewrites > 0
    assert stages.needed_subsets(recipe("debug_rewrites")) == ["multi_turn"]
    assert recipe("debug_self_critique") == recipe("debug") == recipe("debug_inspect_both")
    assert recipe("debug_symbolic").conflict.critique == "symbolic"
    assert stages.needed_subsets(recipe("debug_inspect_text")) == ["multi_turn", "conflict"]
    assert stages.needed_subsets(recipe("debug_inspect_image")) == ["multi_turn", "alignment"]


def test_a_folder_of_ones_own_may_be_part_of_phase_2(tmp_path):
    config = recipe("debug").unlock()
    config.mixture.mine = dict(path=str(tmp_path / "mine"), weight=7.0, stages=("inspect", "refine"))
    stages.plan(config, tmp_path)
    second = cli.load_config(f"{stages.STORED}:{tmp_path / 'phase_2.json'}")
    assert second.data.sources.mine.path == str(tmp_path / "mine")
    assert list(second.data.sources.mine.stages) == ["inspect", "refine"]


def test_what_comes_after_a_change_has_another_key(tmp_path):
    keys = {stage.name: stage.key for stage in stages.plan(recipe("debug"), tmp_path)}
    assert keys == {stage.name: stage.key for stage in stages.plan(recipe("debug"), tmp_path)}
    told = {"alignment.aligned": 5}
    other = {stage.name: stage.key for stage in stages.plan(recipe("debug", **told), tmp_path)}
    same = {name for name in keys if keys[name] == other[name]}
    assert same == {"multi_turn", "phase_1", "prompts", "samples", "conflict"}
    for told in ({"seed": 1}, {"scenes.planted": 0.3}, {"licence": "CC0"}):  # what all samples depend on
        other = {stage.name: stage.key for stage in stages.plan(recipe("debug", **told), tmp_path)}
        assert not [name for name in keys if keys[name] == other[name]], told


def test_a_phase_goes_on_with_the_samples_that_it_began_with(tmp_path):
    stages.plan(recipe("debug"), tmp_path)
    (tmp_path / "phase_1" / "checkpoints" / "4").mkdir(parents=True)
    other = {"conflict.consistent": 5, "phase_1.train.steps": 8}
    stages.plan(recipe("debug", **other), tmp_path)
    with pytest.raises(RecipeError, match="config.multi_turn.samples was 24 when phase_1 began .* is 30 now"):
        run("multi_turn", recipe("debug", **{"multi_turn.samples": 30}), str(tmp_path))
    (tmp_path / "phase_2" / "checkpoints" / "4").mkdir(parents=True)
    with pytest.raises(RecipeError, match="phase_1 has come to step 4 .* is 8 now, and phase_2 began"):
        stages.plan(recipe("debug", **other), tmp_path)
    with pytest.raises(RecipeError, match="config.conflict.consistent was 5 when phase_2 began"):
        stages.plan(recipe("debug", **{"conflict.consistent": 6}), tmp_path)
    with pytest.raises(RecipeError, match="when phase_1 and phase_2 began .* .*phase_1 and .*phase_2 to"):
        stages.plan(recipe("debug", **{"multi_turn.samples": 30}), tmp_path)
    stages.plan(recipe("debug_inspect_none", **{"conflict.consistent": 6}), tmp_path)  # nothing trains on it
    (tmp_path / "recipe.json").write_text('{"multi_turn": {}}')  # of an earlier version
    stages.plan(recipe("debug"), tmp_path)


def test_what_a_user_can_get_wrong_is_one_line(tmp_path):
    with pytest.raises(RecipeError, match="unknown part 'conflct'; did you mean conflict"):
        run("conflct", recipe("debug"), str(tmp_path))
    with pytest.raises(RecipeError, match="config.world is missing: take a config as configs/recipe"):
        run("stages", cli.load_config("configs/scenes.py:debug"), str(tmp_path))
    with pytest.raises(RecipeError, match="holds no samples of phase 1: draw them first"):
        run("conflict", recipe("debug"), str(tmp_path))
    with pytest.raises(
        RecipeError, match="config.scenes.level must be one of default, jitter, .*, got .hang"
    ):
        run("multi_turn", recipe("debug", **{"scenes.level": "hang"}), str(tmp_path))
    with pytest.raises(RecipeError, match="config.conflict.critique must be one of self_sampled, symbolic"):
        run("conflict", recipe("debug", **{"conflict.critique": "x"}), str(tmp_path))
    with pytest.raises(RecipeError, match="config.scenes.planted must be above 0 and at most 1, got 0.0"):
        run("alignment", recipe("debug", **{"scenes.planted": 0.0}), str(tmp_path))
    with pytest.raises(RecipeError, match="config.samples.flags must be flags, .*, got .0.5,."):
        run("stages", recipe("debug", **{"samples.flags": (0.5,)}), str(tmp_path))
    with pytest.raises(RecipeError, match="config.prompts=FILE is needed"):
        run("prompts", recipe("bagel_7b"), str(tmp_path))
    with pytest.raises(RecipeError, match="config.most_turns is 99, a row of configs/scenes.py:debug has 8"):
        stages.plan(recipe("debug", most_turns=99), tmp_path)
    config = recipe("debug").unlock()
    config.mixture.mine = dict(weight=1.0, stages=("inspect",))
    with pytest.raises(RecipeError, match="config.mixture.mine is no subset .* and has no path"):
        stages.plan(config, tmp_path)
    config = recipe("debug").unlock()
    config.phase_1.train.stepz = 3
    with pytest.raises(RecipeError, match="config.phase_1.train.stepz: .*did you mean config.train.steps"):
        stages.plan(config, tmp_path)


def test_the_subsets_are_one_command_with_their_statistics(tmp_path, capsys):
    config = recipe("debug_symbolic", **{"alignment.sampled": 0.0})
    text = run("subsets", config, str(tmp_path))
    for figure in ("samples: multi_turn", "share of steps: add", "32,012", "152.80", "samples: misaligned"):
        assert figure in text
    assert "multi_turn: 24 of 24 multi_turn; 24 made in" in capsys.readouterr().err
    found = json.loads((tmp_path / "statistics.json").read_text())
    assert found["conflict"]["samples: conflicting"] == config.conflict.conflicting
    for subset in building.SUBSETS:
        source = open_stored(tmp_path / subset, (32, 32))
        assert len(source) and all(source[i].turns for i in range(len(source)))
    run("subsets", config, str(tmp_path))
    assert "nothing was left to do" in capsys.readouterr().err


def test_prompts_of_phase_1_are_no_prompts_of_the_subsets(tmp_path):
    config = recipe("debug", **{"samples.prompts": 50})
    prompts = pathlib.Path(run("prompts", config, str(tmp_path))).read_text().splitlines()
    assert len(prompts) == 50 and len(set(prompts)) > 40


@pytest.mark.long
def test_the_whole_recipe_runs_and_is_done_once(tmp_path):
    command = [str(ROOT / "launch" / "recipe.py"), "cpu", "--config=configs/recipe/paper.py:debug"]
    env = {**os.environ, "PYTHON": sys.executable}
    for already in (False, True):
        done = subprocess.run(
            [*command, f"--workdir={tmp_path}"],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=1800,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stderr.count("done before") == (10 if already else 0)
    assert (tmp_path / "phase_2" / "evaluation" / "results.json").is_file()
