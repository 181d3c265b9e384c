"""The stages of a recipe: what is run, in which order, and the configs of both trainings."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import operator
import pathlib
from typing import Any

from ml_collections import ConfigDict

from process_gen.common import files
from process_gen.experiment import builders, cli
from process_gen.recipe.building import PROMPTS, SAMPLES, SUBSETS, sampled_share, settings_of
from process_gen.recipe.parts import RecipeError
from process_gen.trajectory.record import to_json

NAME = "stages.json"
STORED = "configs/recipe/stored.py"
PHASES = ("phase_1", "phase_2")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One command, a module below `process_gen` with its flags.

    Attributes:
      name: also of the file in `WORKDIR/stages` that marks it as done.
      everyone: whether all hosts run it together; else the first one does, and the others wait.
      key: a hash of all that it depends on, earlier stages included; a stage whose key changed runs again.
    """

    name: str
    command: str
    flags: tuple[str, ...]
    everyone: bool = False
    key: str = ""


def plan(config: ConfigDict, workdir: pathlib.Path) -> list[Stage]:
    """Writes the configs of the recipe and of both phases, and the list of stages, which it returns.

    Raises:
      RecipeError, CommandError, ConfigError: a phase cannot work, or has begun on other samples or weights.
    """
    needed = needed_subsets(config)
    check_begun(config, workdir)
    written = {"recipe": config} | {phase: _training(config, phase, workdir) for phase in PHASES}
    for phase in PHASES:
        builders.check(written[phase])
    first, second = (max(_saved(workdir, phase), default=0) for phase in PHASES)
    if second and first < written["phase_1"].train.steps:
        raise RecipeError(
            f"phase_1 has come to step {first} of config.phase_1.train.steps, which is "
            f"{written['phase_1'].train.steps} now, and phase_2 began from its weights: choose another "
            f"workdir, or remove {workdir / 'phase_2'} to train it again"
        )
    for name, one in written.items():
        files.write_json(workdir / f"{name}.json", builders.to_json(one), indent=1)
    stages = _keyed(_stages(config, needed, workdir), config, written)
    files.write_json(workdir / NAME, [dataclasses.asdict(stage) for stage in stages], indent=1)
    return stages


def check_begun(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Refuses changed settings of samples that a phase has begun to train on.

    Raises:
      RecipeError: names the key and the phases.
    """
    try:
        before = dict(files.read_json(workdir / "recipe.json"))
    except (OSError, ValueError, TypeError):
        return
    trained = {"phase_1": SUBSETS[:1], "phase_2": needed_subsets(config)}
    begun = [phase for phase in PHASES if _saved(workdir, phase)]
    for group in SUBSETS:
        phases = [phase for phase in begun if group in trained[phase]]
        for name, now in config[group].items():
            was = dict(before.get(group) or {}).get(name, now)
            if was != now and phases:
                raise RecipeError(
                    f"config.{group}.{name} was {was} when {' and '.join(phases)} began to train on those "
                    f"samples, and is {now} now: choose another workdir, or remove "
                    f"{' and '.join(str(workdir / phase) for phase in phases)} to train again"
                )


def _saved(workdir: pathlib.Path, phase: str) -> list[int]:
    """The steps that a phase has saved."""
    found = (workdir / phase / "checkpoints").glob("*")
    return [int(one.name) for one in found if one.name.isdigit()]


def _stages(config: ConfigDict, needed: list[str], workdir: pathlib.Path) -> list[Stage]:
    """The commands in their order."""

    def own(part: str) -> Stage:
        stored = f"--config={STORED}:{workdir / 'recipe.json'}"
        return Stage(part, "recipe", (f"--part={part}", stored, f"--workdir={workdir}"))

    def train(phase: str) -> Stage:
        stored = f"--config={STORED}:{workdir / f'{phase}.json'}"
        return Stage(phase, "train", (stored, f"--workdir={workdir / phase}"), everyone=True)

    stages = [own("multi_turn"), train("phase_1")]
    if any(sampled_share(subset, config) for subset in needed):
        files_of = (f"--prompts_file={workdir / PROMPTS}", f"--output_dir={workdir / SAMPLES}")
        told = (f"--workdir={workdir / 'phase_1'}", *files_of, "--nostrips", *config.samples.flags)
        stages += [own("prompts"), Stage("samples", "sample", told, everyone=True)]
    stages += [own(subset) for subset in needed if subset != "multi_turn"]
    stages += [own("statistics"), train("phase_2")]
    for phase in PHASES if config.evaluate.flags else ():
        flags = (f"--workdir={workdir / phase}", *config.evaluate.flags)
        stages.append(Stage(f"evaluate_{phase}", "evaluate", flags, everyone=True))
    return stages


def _keyed(stages: list[Stage], config: ConfigDict, written: dict[str, ConfigDict]) -> list[Stage]:
    """The stages with their keys: a change to one, as of a number of samples, changes all later keys."""
    found, before = [], ""
    for stage in stages:
        group = {"prompts": "samples"}.get(stage.name, stage.name)
        depends: list[Any] = [before, stage.command, stage.flags]
        if stage.name in PHASES:
            depends.append(builders.to_json(written[stage.name]))
        elif group in config:
            depends.append(builders.to_json(config[group]))
        if stage.name in SUBSETS:
            depends += [to_json(settings_of(stage.name, config)), config.licence]
        before = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
        found.append(dataclasses.replace(stage, key=before))
    return found


def needed_subsets(config: Any) -> list[str]:
    """The subsets that phase 2 trains on.

    Raises:
      RecipeError: `multi_turn`, on which phase 1 trains, is not among them.
    """
    found = [name for name in SUBSETS if name in config.mixture and config.mixture[name].weight > 0]
    if "multi_turn" not in found:
        raise RecipeError("config.mixture.multi_turn.weight must be above 0: phase 1 trains on that subset")
    return found


def _training(config: Any, phase: str, workdir: pathlib.Path) -> ConfigDict:
    """The config of a phase: the base with what the phase overrides, on the subsets of the workdir."""
    training = ConfigDict(cli.load_config(config.base))
    places = {name: workdir / name for name in needed_subsets(config)} | _others(config)
    if len(places) == 1:
        training.layout.after = 0  # without critiques, the texts of agreement in subset 1 teach nothing
    _override(training, config[phase], f"config.{phase}")
    if config.most_turns > training.layout.turns:
        raise RecipeError(
            f"config.most_turns is {config.most_turns}, a row of {config.base} has {training.layout.turns} "
            f"turns: set --config.most_turns={training.layout.turns}"
        )
    training.data.update(dict(source="folder", path=str(workdir / "multi_turn"), mode="process"))
    if phase == "phase_2":
        training.train.init = str(workdir / "phase_1")
        entries = {name: config.mixture[name] for name in places}
        training.data.sources = {
            name: dict(source="folder", path=str(places[name]), weight=own.weight, stages=tuple(own.stages))
            for name, own in entries.items()
        }
    return training.lock()


def _others(config: Any) -> dict[str, pathlib.Path]:
    """Folders of other data that phase 2 trains on, as a converted public data set, by name.

    Raises:
      RecipeError: an entry of the mixture is neither a subset nor has a path.
    """
    found = {}
    for name, entry in config.mixture.items():
        if name not in SUBSETS and entry.weight > 0:
            if not entry.get("path"):
                raise RecipeError(
                    f"config.mixture.{name} is no subset ({', '.join(SUBSETS)}) and has no path: give the "
                    "folder of its trajectories"
                )
            found[name] = pathlib.Path(entry.path).absolute()
    return found


def _override(config: ConfigDict, changes: ConfigDict, place: str) -> None:
    """Sets the leaves of `changes`, all of which the config must have.

    Raises:
      RecipeError: it has no such key; names the nearest.
    """
    for name in cli.leaves(changes):
        *groups, last = name.split(".")
        holder = functools.reduce(operator.getitem, groups, changes)
        try:
            target = cli.group_of(name, config, holder.get("loss"))
        except cli.CommandError as error:
            raise RecipeError(f"{place}.{name}: {error}") from None
        target[last] = holder[last]
