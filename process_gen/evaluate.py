"""Draws the prompts of benchmarks, has the images judged, and reports.

    python -m process_gen.evaluate                                         # the shipped weights on scenes
    python -m process_gen.evaluate --workdir=runs/quick --per_group=40 --seeds=0,1,2
    python -m process_gen.evaluate --workdir=runs/quick --arms=process,steps=2,no_inspection,best_of=4
    python -m process_gen.evaluate --workdir=runs/7b --tasks=geneval-hf --task_args=geneval-hf.metadata=FILE
    python -m process_gen.evaluate --tasks=wise --images=FOLDER            # of another program
    python -m process_gen.evaluate --compare=runs/a/evaluation/results.json,runs/b/evaluation/results.json
    python -m process_gen.evaluate --compare=sweeps/losses/results.jsonl --pool=config.seed  # over seeds

Three stages, each of which resumes where it was interrupted: `--stage=images` draws, `--stage=judge` judges
the images, `--stage=report` computes the scores; `--stage=all` runs all three. No image is drawn or judged
twice. `process_gen/evaluation/README.md` has tasks, arms, measures and files.
"""

from __future__ import annotations

from process_gen.experiment import cli  # before what reads its settings when it is imported

# isort: split
import ast
import dataclasses
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags

from process_gen.common.names import check_name
from process_gen.distributed import hosts, stopping
from process_gen.evaluation import judging, pipeline, results, tables, writing
from process_gen.evaluation.arms import ARMS
from process_gen.evaluation.draws import ProgressFn, silent
from process_gen.evaluation.options import from_words
from process_gen.evaluation.outsiders import ROLES
from process_gen.evaluation.pipeline import CellSpec
from process_gen.evaluation.stages import STAGES, evaluate
from process_gen.evaluation.tasks import TASKS, make_task, options_of
from process_gen.evaluation.tasks.base import TaskError
from process_gen.evaluation.tasks.scenes import Scenes
from process_gen.reports import files
from process_gen.sampling import Sampler
from process_gen.services.options import ServiceError
from process_gen.weights import restore


def run(values: Any, show: ProgressFn = silent) -> str:
    """Does what the command does; returns what it prints at the end, nothing on all hosts but the first.

    Raises:
      One of `ERRORS`: bad input; the message is fit for a user.
    """
    check_name(values.stage, STAGES, "stage", TaskError)
    check_name(values.states, judging.STATES, "kind of states", TaskError)
    for name in values.allow:
        check_name(name, tables.MUST_AGREE, "thing to allow", TaskError)
    if values.forced and "scenes" not in values.tasks:
        raise TaskError("--forced needs --tasks=scenes: other tasks have no teacher")
    if values.compare:
        text, written = writing.compare(values.compare, _folder(values), values.allow, values.pool)
        return "\n".join([text, "", *map(str, written)])
    hosts.name_processes(values.coordinator, values.num_processes, values.process_id)
    hosts.initialize()
    options = options_of(values.task_args, values.tasks)
    roles = from_words(values.arm_args, ROLES, "--arm_args", "role")
    config: Mapping[str, Any] = {}
    if values.images:
        told = (values.images, values.limit, values.per_group)
        cells = [(pipeline.ask_foreign(task, options[task], *told), None) for task in options]
    elif values.stage in ("judge", "report"):
        cells = [(one, None) for one in _remembered(values, options)]
    else:
        cells, config = _asked(values, options, roles)
    folder = files.check_writable(_folder(values))
    host = (jax.process_index(), jax.process_count())
    text, written, _ = evaluate(
        cells, folder, stage=values.stage, states=values.states, config=config, pictures=values.pictures,
        allow=values.allow, show=show, host=host, forced_steps=values.forced,
    )  # fmt: skip
    return "\n".join([*([text, ""] if text else []), *map(str, written)])


def _asked(
    values: Any, options: Mapping[str, dict[str, str]], roles: Mapping[str, dict[str, str]]
) -> tuple[list[tuple[CellSpec, Sampler]], Mapping[str, Any]]:
    """The cells of a checkpoint, and the config that it was trained with."""
    for task in values.tasks:  # raises for bad options before the weights are loaded
        told = dict(options[task])
        if task == "scenes" and "level" not in told:  # known with the weights, and the groups with it
            told.pop("groups", None)
        make_task(task, told)
    settings = dict(map(_setting, values.sampling))
    sampler, restored = restore.sampler_of_flags(values, values.batch_size, **settings)
    checkpoint = {
        "source": str(restored.source),
        "which": values.which,
        "digest": restored.digest,
        "dtype": sampler.model.config.dtype,
    }
    arms = list(dict.fromkeys(values.arms)) or [sampler.config.mode.value]
    seeds, cells = _seeds(values) or [0], []
    for task in options:
        told = dict(options[task])
        if task == "scenes":
            if restored.level_name is None and "level" not in told:
                raise TaskError(
                    f"{restored.source} was not trained on scenes: judge it on another of --tasks, or name a "
                    "level of the scenes world (--task_args=scenes.level=default)"
                )
            told.setdefault("level", restored.level_name)
            told.setdefault("per_group", str(max(values.per_group, Scenes.per_group)))
        cells += [
            pipeline.ask(
                sampler, task, told, arm, seeds,
                checkpoint=checkpoint, limit=values.limit, per_group=values.per_group, arm_options=roles,
            )
            for arm in arms
        ]  # fmt: skip
    for one, of_arm in cells:
        of_arm.check([draw.prompt for draw in one.wanted])
    asked = {one.task: dict.fromkeys(doc.input for doc in one.docs) for one, _ in cells}
    for task, prompts in asked.items() if hosts.is_lead() else ():
        unknown = [(text, words[0]) for text in prompts if (words := sampler.tokenizer.unknown(text))]
        if unknown:
            print(
                f"warning: {len(unknown)} of {len(prompts)} prompts of {task} have words that are not in the "
                f"vocabulary, such as {unknown[0][1]!r} in {unknown[0][0]!r}, which may draw anything",
                file=sys.stderr,
            )
    return cells, restored.config


def _seeds(values: Any) -> list[int]:
    if odd := [text for text in values.seeds if not text.strip().isdecimal()]:
        raise TaskError(f"--seeds takes whole numbers with commas between them, got {odd[0]!r}")
    return list(dict.fromkeys(map(int, values.seeds)))


def _remembered(values: Any, options: Mapping[str, Mapping[str, str]]) -> list[CellSpec]:
    """The cells of an earlier `images` stage that `--tasks` and `--arms` name.

    Options of the command line, such as those of another judge, replace the stored ones; its seeds and
    numbers of prompts choose among what was drawn.
    """
    found = pipeline.remembered(pathlib.Path(_folder(values)))
    wanted = [
        one for one in found if one.task in values.tasks and (not values.arms or one.arm in values.arms)
    ]
    if not wanted:
        raise TaskError(
            f"{_folder(values)} holds no images of such a task and arm: --stage=images draws them"
        )
    seeds = _seeds(values)
    for one in wanted:
        if not one.images and (absent := sorted({*seeds} - {*one.seeds})):
            raise TaskError(f"{_folder(values)} has no images of seed {absent[0]}: --stage=images draws them")
    some = {name: value for name in ("limit", "per_group") if (value := getattr(values, name))}
    return [
        dataclasses.replace(
            one,
            options={**one.options, **options[one.task]},
            seeds=one.seeds if one.images else seeds or one.seeds,
            **some,
        )
        for one in wanted
    ]


def _folder(values: Any) -> pathlib.Path:
    """Where the files go: `--output_dir`, else `evaluation` in the run's folder or in the current one."""
    if values.output_dir:
        return pathlib.Path(values.output_dir)
    of_run = values.workdir and not values.compare and os.path.isdir(values.workdir)
    return pathlib.Path(values.workdir if of_run else ".") / "evaluation"


def define_flags() -> None:
    cli.define_host_flags()
    restore.define_flags()
    flags.DEFINE_list("tasks", ["scenes"], f"Of {', '.join(TASKS)}.")
    flags.DEFINE_multi_string("task_args", [], "An option of a task, e.g. scenes.split=train.")
    flags.DEFINE_list("arms", [], f"Ways to draw, of {', '.join(ARMS)}; as it was trained by default.")
    flags.DEFINE_multi_string(
        "arm_args",
        [],
        "An option of a chat model of --arms, as planner.model=NAME or inspector.base_url=URL.",
    )
    flags.DEFINE_list("seeds", [], "Seeds; every prompt is drawn with each, with seed 0 by default.")
    flags.DEFINE_integer("limit", 0, "Prompts of a task, from every group in turn; 0 for all.", lower_bound=0)
    flags.DEFINE_integer("per_group", 0, "Prompts of each group; 0 for all.", lower_bound=0)
    flags.DEFINE_string("stage", "all", f"Of {', '.join(STAGES)}.")
    flags.DEFINE_string("states", "all", "Which images of a trajectory are judged: all or final.")
    flags.DEFINE_string("images", None, "Folder of images in the task's layout, to judge in place of ours.")
    flags.DEFINE_integer("batch_size", 64, "Trajectories sampled side by side.")
    flags.DEFINE_multi_string("sampling", [], "A setting that differs from the run's, e.g. flow_steps=10.")
    flags.DEFINE_string("output_dir", None, "Folder to write to; `evaluation` in the workdir by default.")
    flags.DEFINE_integer("pictures", 24, "Trajectories of each cell on the page.", lower_bound=0)
    flags.DEFINE_bool("forced", False, "Draws steps after the teacher's own as well, of --tasks=scenes.")
    flags.DEFINE_list(
        "compare", [], "Results files, or a sweep's results.jsonl, side by side; draws nothing."
    )
    flags.DEFINE_list("pool", [], "Of a sweep, as config.seed: cells that differ in these alone are one.")
    flags.DEFINE_list("allow", [], f"What may differ in one table: of {', '.join(tables.MUST_AGREE)}.")


def _setting(text: str) -> tuple[str, Any]:
    """Reads `key=value`; a value that is no Python literal is a string."""
    key, equals, value = text.partition("=")
    if not equals:
        raise TaskError(f"--sampling takes key=value, got {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


ERRORS = (
    *(TaskError, ServiceError, results.ResultsError, cli.CommandError, *restore.ERRORS, OSError),
    *(hosts.HostMissing, hosts.HostSettingsError),
)
"""What a user can get wrong; each says so in one line."""


def main(argv: Sequence[str]) -> None:
    del argv
    with stopping.deferred() as stop:

        def show(text: str) -> None:
            cli.show_progress(text)
            stop.check()

        if text := run(flags.FLAGS, show):
            print(text)


if __name__ == "__main__":
    define_flags()
    cli.run(main, ERRORS)
