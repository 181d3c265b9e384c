"""The subsets of a recipe, each a folder below the workdir that is filled up to its quotas.

WORKDIR/multi_turn/            subset 1, with words of agreement
WORKDIR/conflict/              subset 2
WORKDIR/alignment/             subset 3
WORKDIR/samples/               what phase 1 drew (`process_gen.sample`)
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from process_gen.common import files, ranges
from process_gen.distributed import lock
from process_gen.recipe import making, questions
from process_gen.recipe.errors import RecipeError
from process_gen.recipe.filling import Candidate, Filled, fill
from process_gen.recipe.output import SampleFolder
from process_gen.recipe.parts import World
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

ANY_SIDE = 1024
"""Side in pixels that the estimate of costs assumes where the endpoint chooses the size of images."""

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
    """Makes what is missing of a subset.

    Args:
      subset: of `SUBSETS`.
      config: of the recipe.
      workdir: of the recipe.
      stop: is called between samples; what it raises ends the work.
      say: is called with a line: the estimated cost before any request, and the counts at the end.

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
            if config.world == "services":
                check_prompts(growing, FilePrompts(config.prompts))
            fills = {"multi_turn": _multi_turn, "conflict": _conflict, "alignment": _alignment}
            filled = fills[subset](world, config, workdir, growing, stop_all, say)
    say(f"{subset}: {filled}")
    for reason, count in growing.rejected.most_common():
        say(f"  {count:,} candidates became no sample: {reason}")
    for kind, count in filled.missing.items():
        say(f"  {count:,} {kind} are missing, and no candidate is left: more prompts would make more")
    return filled


def settings_of(subset: str, config: Any) -> dict[str, Any]:
    """The settings that the samples of a subset depend on; their number is none of them."""
    own = {k: v for k, v in config[subset].to_dict().items() if k in ("rewrites", "critique", "imageless")}
    own |= {"world": config.world, "seed": config.seed, "most_turns": config.most_turns}
    if config.world == "scenes":
        return own | config.scenes.to_dict()
    services = config.services
    models = {name: services[name].model for name in ("chat", "images")}
    return own | models | {"size": services.size, "steps": services.steps, "prompts": config.prompts}


def check_prompts(growing: SampleFolder, prompts: FilePrompts) -> None:
    """Refuses a file of prompts in which lines have changed since samples were made of them.

    Candidates are identified by line number: with another file some prompts would be skipped, others used
    twice. Lines may be added at the end.

    Raises:
      RecipeError: names the line.
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


# --------------------------------------------------------------------- subsets


def _multi_turn(
    world: World, config: Any, workdir: pathlib.Path, growing: SampleFolder, stop: Stop, say
) -> Filled:
    own, wanted = config.multi_turn, {"multi_turn": config.multi_turn.samples}
    _announce(world, config, "multi_turn", wanted["multi_turn"] - growing.counts.total(), say)
    make = functools.partial(
        making.multi_turn, rewrites=own.rewrites, attempts=own.attempts, most_turns=config.most_turns
    )
    found = _of_prompts({"multi_turn": ("multi_turn", make)}, config, world)
    return fill(growing, wanted, found, world.workers, stop, PATIENCE)


def _conflict(
    world: World, config: Any, workdir: pathlib.Path, growing: SampleFolder, stop: Stop, say
) -> Filled:
    own = config.conflict
    wanted = {making.CONSISTENT: own.consistent, making.CONFLICTING: own.conflicting}
    told = {"imageless": own.imageless, "most_turns": config.most_turns}
    sampled = own.critique == SELF_SAMPLED
    missing = sum(wanted.values()) - growing.counts.total()
    _announce(world, config, "conflict" if sampled else SYMBOLIC, missing, say)
    if sampled:
        found = _of_samples("conflict", config, world, functools.partial(making.conflict, **told), workdir)
        return fill(growing, wanted, found, world.workers, stop)
    return _fill_planted("conflict", world, config, growing, wanted, told, stop)


def _alignment(
    world: World, config: Any, workdir: pathlib.Path, growing: SampleFolder, stop: Stop, say
) -> Filled:
    own = config.alignment
    wanted = {making.ALIGNED: own.aligned, making.MISALIGNED: own.misaligned}
    told = {"imageless": own.imageless, "most_turns": config.most_turns}
    _announce(world, config, "alignment", sum(wanted.values()) - growing.counts.total(), say)
    first = None
    if own.sampled > 0:
        # Samples that an earlier run planted for a smaller quota must not take the place of sampled ones
        # (`growing.prompts` are of the samples at the start).
        planted = {kind: sum(uid.startswith(f"{kind}-") for uid in growing.prompts) for kind in wanted}
        some = {kind: min(n, round(n * own.sampled) + planted[kind]) for kind, n in wanted.items()}
        make = functools.partial(making.alignment, **told)
        found = _of_samples("alignment", config, world, make, workdir)
        first = fill(growing, some, found, world.workers, stop)
    last = _fill_planted("alignment", world, config, growing, wanted, told, stop)
    if first is None:
        return last
    return Filled(last.counts, last.wanted, first.made + last.made, first.seconds + last.seconds)


def _fill_planted(
    subset: str,
    world: World,
    config: Any,
    growing: SampleFolder,
    wanted: Mapping[str, int],
    told: Mapping[str, Any],
    stop: Stop,
) -> Filled:
    """Fills what is missing of each kind with planted errors."""
    makes = {
        kind: (f"{subset} {kind}", functools.partial(making.planted, kind=kind, **told)) for kind in wanted
    }
    return fill(growing, wanted, _of_prompts(makes, config, world), world.workers, stop, PATIENCE)


def _of_prompts(makes: Mapping[str, tuple[str, Callable]], config: Any, world: World) -> Iterator[Candidate]:
    """Yields candidates of each kind in turn. `makes`: kind -> (stream of prompts, what makes a sample)."""
    prompts = prompts_of(config)

    def make_one(kind: str, number: int) -> making.Made:
        stream, make = makes[kind]
        rng = generator(config.seed, f"{stream} path", number)
        return make(world, prompts.prompt(stream, number), rng)

    for number in prompts.numbers():
        for kind in makes:
            yield Candidate(f"{kind}-{number:07d}", functools.partial(make_one, kind, number), kind)


def _of_samples(
    subset: str, config: Any, world: World, make: Callable, workdir: pathlib.Path
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
        return make(world, listing.sampled(record), generator(config.seed, f"{subset} sampled", number))

    for number, record in enumerate(listing.records()):
        yield Candidate(f"{SAMPLED}-{record.uid}", functools.partial(make_one, record, number))


def _announce(world: World, config: Any, work: str, samples: int, say: Callable[[str], None]) -> None:
    """Says what the work will cost; scenes cost nothing."""
    if config.world == "scenes" or samples <= 0:
        return
    from process_gen.recipe.service import PAPER_STEPS as steps

    q = questions
    planted = {q.GRAPH: 1.0, q.CHECK: steps + 1}
    asked = {
        "multi_turn": ({q.GRAPH: 1.0, q.STEPS: float(config.services.phrase), q.CHECK: steps}, steps),
        "conflict": ({q.PLANS: steps, q.COMPLETE: 1.0, q.CHECK: 1.0, q.REST: 0.5}, 1.0),
        "alignment": ({q.DRAFT: steps, **planted}, steps + 1),
        SYMBOLIC: (planted, steps + 1),
    }[work]
    sides = [int(part) for part in config.services.size.split("x") if part.isdecimal()]
    side = max(sides, default=ANY_SIDE)
    told = world.estimates(*asked, samples, FilePrompts(config.prompts).characters, side)
    for model, one in told.items():
        say(f"{work}: {samples:,} samples, {model}: {one}")
