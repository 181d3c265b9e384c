"""The paper's training data, and the recipe that trains on it.

    python -m process_gen.recipe --config=configs/recipe/paper.py:paper --workdir=runs/data --part=subsets
    launch/recipe.py cpu --config=configs/recipe/paper.py:scenes --workdir=runs/recipe    # all stages

--part is one of

    multi_turn   subset 1: prompts drawn step by step
    prompts      the prompts that phase 1 is to draw, `WORKDIR/prompts.txt`
    conflict     subset 2: plans judged against the prompt, self-sampled by phase 1 or from the scene graph
    alignment    subset 3: drafts judged against their plans
    subsets      the three of them, as far as phase 2 trains on them, and their statistics
    statistics   what they hold, beside the paper's figures
    stages       the configs of both phases and the commands of the recipe (`launch/recipe.py` runs them)

Every part resumes where it was interrupted. Answers of services are cached in `WORKDIR/answers`.
"""

from __future__ import annotations

from process_gen.experiment import cli

if __name__ == "__main__":  # bad flags are found before the slow imports
    from absl import flags as _flags

    _flags.DEFINE_string("part", "subsets", "Part of the recipe to make, see above.")
    cli.read_flags(config="configs/recipe/paper.py:scenes", workdir="Folder of the recipe.")

# isort: split
import functools
import shlex
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from process_gen.common import files
from process_gen.common.names import check_name
from process_gen.distributed import stopping
from process_gen.experiment import builders, vocabulary
from process_gen.recipe import building, stages, statistics
from process_gen.recipe.parts import RecipeError
from process_gen.reports.files import check_writable
from process_gen.services.options import ServiceError

PARTS = (*building.SUBSETS, "prompts", "subsets", "statistics", "stages")


def run(part: str, config: ConfigDict, workdir: str) -> str:
    """Does a part of a recipe; returns what to print at its end.

    Raises:
      One of `ERRORS`: bad input; the message is fit for a user.
      Stopped: a signal asked to stop, or samples are missing that a service failed to make; all others are
        written, and the same command goes on.
    """
    check_name(part, PARTS, "part", RecipeError)
    building.check(config)
    folder = check_writable(workdir).absolute()
    if part == "stages":
        commands = ([f"process_gen.{one.command}", *one.flags] for one in stages.plan(config, folder))
        return "\n".join(f"python -m {shlex.join(words)}" for words in commands)
    if part == "prompts":
        return str(building.prompts_file(config, folder))
    if part != "statistics":
        stages.check_begun(config, folder)
    subsets = [part] if part in building.SUBSETS else []
    if part == "subsets":
        subsets = stages.needed_subsets(config)
    with stopping.deferred() as stop:
        say = functools.partial(print, file=sys.stderr, flush=True)
        filled = {name: building.build(name, config, folder, stop.check, say) for name in subsets}
    if short := [name for name, one in filled.items() if one.missing and one.waiting]:
        raise stopping.Stopped(f"{', '.join(short)} wait for the services: the same command asks again")
    if part in building.SUBSETS:
        return str(folder / part)
    found = statistics.count(folder, vocabulary.build_tokenizer(cli.load_config(config.base)))
    files.write_json(folder / "statistics.json", found, indent=1)
    return statistics.describe(found)


ERRORS = (RecipeError, ServiceError, builders.ConfigError, cli.CommandError, OSError)
"""What a user can get wrong; each says so in one line."""


def main(argv: Sequence[str]) -> None:
    """Does the part that the command line names."""
    del argv
    print(run(flags.FLAGS.part, flags.FLAGS.config, flags.FLAGS.workdir))


if __name__ == "__main__":
    cli.run(main, ERRORS)
