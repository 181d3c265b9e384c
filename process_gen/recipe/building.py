"""The subsets of a recipe, each a folder below the workdir that is filled up to its quotas.

WORKDIR/multi_turn/            subset 1, with words of agreement
WORKDIR/conflict/              subset 2
WORKDIR/alignment/             subset 3
WORKDIR/samples/               what phase 1 drew (`process_gen.sample`)
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import pathlib
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from process_gen.common import files, ranges
from process_gen.distributed import lock
from process_gen.recipe import making
from process_gen.recipe.filling import Candidate, Filled, fill
from process_gen.recipe.output import SampleFolder
from process_gen.recipe.parts import RecipeError, World
from process_gen.recipe.prompts import FilePrompts, generator, prompts_of
from process_gen.recipe.scenes import Scenes
from process_gen.reports.listing import NAME, SETTINGS, Listing
from process_gen.scenes.levels import LEVELS
from process_gen.services.options import Service

SUBSETS = ("multi_turn", "conflict", "alignment")
SAMPLES, PROMPTS = "samples", "prompts.txt"
SAMPLED = "sampled"
"""Prefix of the uids of candidates that phase 1 drew."""
SELF_SAMPLED, SYMBOLIC = "self_sampled", "symbolic"

PATIENCE = 200
"""Prompts in a row without a sample after which building fails: something must be wrong with the recipe."""

FLAGS = ranges.Range(
    "flags, e.g. ('--batch_size=16', '--dtype=bfloat16'), one alone ('--batch_size=16',), or ()",
    lambda value: isinstance(value, (tuple, list)) and all(isinstance(one, str) for one in value),
)
RANGES: dict[str, ranges.Range] = {
    "seed": ranges.SEED,
    "world": ranges.one_of("scenes", "services"),
    "most_turns": ranges.COUNT,
    "scenes.level": ranges.one_of(*LEVELS),
    "scenes.planted": ranges.Range(
        "above 0 and at most 1", lambda value: ranges.SHARE.holds(value) and value > 0
    ),
    "multi_turn.samples": ranges.COUNT,
    "multi_turn.rewrites": ranges.SHARE,
    "multi_turn.attempts": ranges.COUNT,
    "samples.prompts": ranges.COUNT,
    **dict.fromkeys(("samples.flags", "evaluate.flags"), FLAGS),
    **dict.fromkeys(("conflict.consistent", "conflict.conflicting"), ranges.COUNT_OR_OFF),
    **dict.fromkeys(("alignment.aligned", "alignment.misaligned"), ranges.COUNT_OR_OFF),
    **dict.fromkeys(("conflict.imageless", "alignment.imageless", "alignment.sampled"), ranges.SHARE),
    "conflict.critique": ranges.one_of(SELF_SAMPLED, SYMBOLIC),
    "services.steps": ranges.Range(
        "a whole number of at least 2", lambda value: ranges.COUNT.holds(value) and value > 1
    ),
    "services.pair": ranges.SHARE,
    "services.answer_tokens": ranges.COUNT,
}
"""What the numbers and choices of a recipe may be."""

Stop = Callable[[], None]


def check(config: Any) -> None:
    """Refuses a recipe that cannot work, before anything is made.

    Raises:
      RecipeError: names the key, and what it may be.
    """
    for key, allowed in RANGES.items():
        value = config
        for part in key.split("."):
            if part not in value:
                raise RecipeError(f"config.{key} is missing: take a config as configs/recipe/paper.py")
            value = value[part]
        if not allowed.holds(value):
            raise RecipeError(f"config.{key} must be {allowed.text}, got {value!r}")


def make_world(config: Any, workdir: pathlib.Path) -> World:
    """The world that makes the samples of a recipe: `Scenes` or `Services`.

    Raises:
      RecipeError, ServiceError: the client of services is not installed, or their options are wrong.
    """
    if config.world == "scenes":
        return Scenes(config.scenes.level, config.scenes.planted)
    try:  # here, so that scenes need no client
        from process_gen.recipe.service import Services
    except ModuleNotFoundError as error:
        if error.name != "openai":
            raise
        raise RecipeError('services need the openai client: pip install "process_gen[judges]"') from error
    fields = config.services.to_dict()
    told = {}
    for name in ("chat", "images"):
        options = fields.pop(name)
        options["cache"] = options["cache"] or str(workdir / "answers")
        told[name] = Service(name=f"config.services.{name}", **options)
    return Services(**told, **fields)


def build(subset: str, config: Any, workdir: pathlib.Path, stop: Stop, say: Callable[[str], None]) -> Filled:
    """Makes what is missing of a subset, one of `SUBSETS`.

    `stop` is called between samples; what it raises ends the work. `say` is called with lines: the estimated
    cost before any request, and the counts at the end.

    Raises:
      RecipeError, ServiceError, ReportError: see `fill`.
    """
    world, folder = make_world(config, workdir), workdir / subset

    def stop_all() -> None:
        try:
            stop()
        except Exception:
            world.close()
            raise

    with lock.hold(folder, f"building {subset}"):
        provenance = {"source": f"{subset} by {world.name}", "author": world.author}
        if config.licence:
            provenance["licence"] = config.licence
        growing = SampleFolder(folder, settings_of(subset, config), provenance)
        with contextlib.closing(growing):
            own = config[subset]
            wanted = {kind: own[kind] for kind in making.KINDS.get(subset, ())} or {subset: own.samples}
            if config.world == "services":
                prompts = FilePrompts(config.prompts)
                check_prompts(growing, prompts)
                if (missing := sum(wanted.values()) - growing.counts.total()) > 0:
                    work = subset if subset != "conflict" or sampled_share(subset, config) else SYMBOLIC
                    characters = statistics.fmean(map(len, prompts.lines))
                    for model, told in world.estimates(work, missing, characters).items():
                        say(f"{work}: {missing:,} samples, {model}: {told}")
            filled = _fill(subset, wanted, growing, world, config, workdir, stop_all)
    say(f"{subset}: {filled}")
    for reason, count in growing.rejected.most_common():
        say(f"  {count:,} candidates became no sample: {reason}")
    for kind, count in filled.missing.items():
        why = "no candidate is left: more prompts would make more"
        if filled.waiting:
            why = f"{filled.waiting:,} candidates wait for the services: the next run asks again"
        say(f"  {count:,} {kind} are missing, and {why}")
    return filled


def settings_of(subset: str, config: Any) -> dict[str, Any]:
    """The settings that the samples of a subset depend on; their number is none of them."""
    own = {k: v for k, v in config[subset].to_dict().items() if k in ("rewrites", "critique", "imageless")}
    own |= {"world": config.world, "seed": config.seed, "most_turns": config.most_turns}
    if config.world == "scenes":
        return own | config.scenes.to_dict()
    services = config.services
    models = {name: services[name].model for name in ("chat", "images")}
    own |= models | {"size": services.size, "steps": services.steps, "prompts": config.prompts}
    return own | {"pair": services.pair, "phrase": services.phrase}


def check_prompts(growing: SampleFolder, prompts: FilePrompts) -> None:
    """Refuses a file of prompts in which lines have changed since samples were made of them.

    Candidates are identified by line number: with another file some prompts would be skipped, others used
    twice. Lines may be added at the end. Raises RecipeError, which names the line.
    """
    for uid, prompt in growing.prompts.items():
        if uid.startswith(f"{SAMPLED}-"):
            continue
        number = uid.rpartition("-")[2]
        if int(number) >= len(prompts.lines) or prompts.lines[int(number)] != prompt:
            raise RecipeError(
                f"prompt {int(number) + 1} of config.prompts was {prompt[:60]!r} when {str(growing.path)!r} "
                "was made of it, and is another now: add prompts at the end of the file, or choose another "
                "workdir"
            )


def prompts_file(config: Any, workdir: pathlib.Path) -> pathlib.Path:
    """Writes the prompts that phase 1 is to draw; in the scenes world they have a stream of their own."""
    path = workdir / PROMPTS
    prompts = prompts_of(config)
    numbers = itertools.islice(prompts.numbers(), config.samples.prompts)
    with files.whole(path) as scratch:
        lines = (f"{prompts.prompt(SAMPLES, number)}\n" for number in numbers)
        scratch.write_text("".join(lines), encoding="utf-8")
    return path


def sampled_share(subset: str, config: Any) -> float:
    """The share of a subset that is to be made of what phase 1 draws."""
    if subset == "conflict":
        return float(config.conflict.critique == SELF_SAMPLED)
    return config[subset].get("sampled", 0.0)


# ------------------------------------------------------------------ candidates


def _fill(
    subset: str,
    wanted: Mapping[str, int],
    growing: SampleFolder,
    world: World,
    config: Any,
    workdir: pathlib.Path,
    stop: Stop,
) -> Filled:
    """Fills a subset: a `sampled_share` with what phase 1 drew, the rest with what prompts give."""
    own, most_turns, first = config[subset], config.most_turns, None
    fill_with = functools.partial(fill, growing, workers=world.workers, stop=stop)
    if subset == "multi_turn":
        told = dict(rewrites=own.rewrites, attempts=own.attempts, most_turns=most_turns)
        makes = {subset: (subset, functools.partial(making.multi_turn, world, **told))}
        return fill_with(wanted, _of_prompts(makes, config), patience=PATIENCE)
    told = dict(imageless=own.imageless, most_turns=most_turns)
    if share := sampled_share(subset, config):
        # Samples that an earlier run planted for a smaller quota must not take the place of sampled ones
        # (`growing.prompts` are of the samples at the start).
        planted = {kind: sum(uid.startswith(f"{kind}-") for uid in growing.prompts) for kind in wanted}
        some = {kind: min(n, round(n * share) + planted[kind]) for kind, n in wanted.items()}
        make = functools.partial(making.self_sampled, world, subset=subset, **told)
        first = fill_with(some, _of_samples(subset, config, make, workdir))
        if subset == "conflict":
            return first
    makes = {
        kind: (f"{subset} {kind}", functools.partial(making.planted, world, kind=kind, **told))
        for kind in wanted
    }
    last = fill_with(wanted, _of_prompts(makes, config), patience=PATIENCE)
    if first is None:
        return last
    both = {name: getattr(first, name) + getattr(last, name) for name in ("made", "seconds", "waiting")}
    return dataclasses.replace(last, **both)


def _of_prompts(makes: Mapping[str, tuple[str, Callable]], config: Any) -> Iterator[Candidate]:
    """Yields candidates of each kind in turn. `makes`: kind -> (stream of prompts, what makes a sample)."""
    prompts = prompts_of(config)

    def make_one(kind: str, number: int) -> making.Made:
        stream, make = makes[kind]
        return make(prompts.prompt(stream, number), generator(config.seed, f"{stream} path", number))

    for number in prompts.numbers():
        for kind in makes:
            yield Candidate(f"{kind}-{number:07d}", functools.partial(make_one, kind, number), kind)


def _of_samples(
    subset: str, config: Any, make: Callable[..., making.Made], workdir: pathlib.Path
) -> Iterator[Candidate]:
    """Candidates from the trajectories that phase 1 drew, in the order of the listing."""
    folder = workdir / SAMPLES
    if not (folder / NAME).is_file():
        raise RecipeError(
            f"{folder} holds no samples of phase 1: draw them first (`launch/recipe.py` does, or python -m "
            f"process_gen.sample --output_dir={folder}), or take what needs none: "
            f"--config.conflict.critique={SYMBOLIC} --config.alignment.sampled=0"
        )
    listing = Listing(folder, files.read_json(folder / SETTINGS), read_only=True)

    def make_one(record: Any, number: int) -> making.Made:
        return make(listing.sampled(record), generator(config.seed, f"{subset} sampled", number))

    for number, record in enumerate(listing.records()):
        yield Candidate(f"{SAMPLED}-{record.uid}", functools.partial(make_one, record, number))
