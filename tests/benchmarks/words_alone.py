"""How much of a scene the words of one plan pin down: the teacher's plan, drawn from its words and judged.

    python tests/benchmarks/words_alone.py --level=hung --per_group=200

Each thing is drawn where its own words put it, whatever else the plan says. Where words name
cells that is the middle of the cell. On a level without cells a phrase as "a blue square left
of the star" says on which side of what, and not where that is. Three drawers then compose nothing:

    likeliest   the cell in which things of such words stand most often in the teacher's plans:
                a middle one, or the one beside it on the side that the words say. Two things
                may get the same cell, and the later one stands there
    beside      the same, but what is taken already is left alone: the nearest free cell on that
                side of the middle
    spread      a cell drawn from all those in which things of such words stand, as often as they do

and one follows the chain from thing to thing, as the teacher places them:

    composed    by the rule of `placement.hang`: what one pass would have to work out

The last line is a mean over the groups of three and more things: the best of the three that compose
nothing. A low one says that a model which draws everything from one plan
has to work out where each thing is, and that a model which draws step by step can look instead.
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Callable

import numpy as np

from process_gen.evaluation.reading import read_description
from process_gen.scenes.graph import Object, Scene, make_object
from process_gen.scenes.judge import judge
from process_gen.scenes.levels import LEVELS, Level
from process_gen.scenes.placement import hang
from process_gen.scenes.prompts import sample_request
from process_gen.scenes.requests import Request, categories
from process_gen.scenes.teacher import baseline
from process_gen.trajectory.stages import Mode

COUNTED = 2_000
"""Plans of training prompts from which it is known where things of some words stand."""


def one_plan(request: Request, rng: np.random.Generator, level: Level) -> Scene:
    """What the description of the teacher's one plan says, each thing where the level's rule has it."""
    (turn,) = baseline(request, rng, Mode.PLAN_ONLY).turns
    return read_description(turn.plan.description, level)


def words_of(scene: Scene, index: int) -> str | None:
    """The relation that a thing's own words hold: the only thing that they say of its place."""
    anchor = scene.anchors[index]
    return anchor and anchor[0]


def count_cells(level: Level, rng: np.random.Generator) -> dict[str | None, collections.Counter[str]]:
    """How often things stand in which cell, by their own words, over training prompts of every group."""
    found: dict[str | None, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    groups = categories(level)
    for index in range(COUNTED):
        scene = one_plan(sample_request(rng, level, groups[index % len(groups)]), rng, level)
        for number, thing in enumerate(scene.objects):
            found[words_of(scene, number)][thing.cell] += 1
    return found


def drawers(level: Level, rng: np.random.Generator) -> dict[str, Callable[[Scene], Scene]]:
    """The ways to draw a plan, each from what its description says."""
    if not level.hung:
        return {"likeliest": lambda scene: scene}
    cells = count_cells(level, rng)

    def place(scene: Scene, choose: Callable[[collections.Counter[str]], str]) -> Scene:
        things = {}
        for number, thing in enumerate(scene.objects):
            cell = choose(cells[words_of(scene, number)])
            things[cell] = make_object(level, thing.shape, thing.colour, cell)
        return Scene(tuple(things.values()))

    def drawn(found: collections.Counter[str]) -> str:
        return str(rng.choice(list(found), p=np.array(list(found.values())) / found.total()))

    def beside(scene: Scene) -> Scene:
        middle = hang(scene.objects[0], [], level)
        things: list[Object] = []
        for number, thing in enumerate(scene.objects):
            relation = words_of(scene, number)
            there = hang(thing, things, level, [(relation, middle)] if relation else [])
            things += [there] if there else []
        return Scene(tuple(things))

    return {
        "beside": beside,
        "likeliest": lambda scene: place(scene, lambda found: found.most_common(1)[0][0]),
        "spread": lambda scene: place(scene, drawn),
        "composed": lambda scene: scene,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--level", default="hung", choices=list(LEVELS))
    parser.add_argument("--per_group", type=int, default=200, help="prompts of each group")
    parser.add_argument("--split", default="heldout", choices=("train", "heldout"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    level, rng = LEVELS[args.level], np.random.default_rng(args.seed)
    ways = drawers(level, rng)
    print(f"{'group':15}" + "".join(f"{way:>11}" for way in ways))
    means = {}
    for group in categories(level):
        right = collections.Counter()
        for _ in range(args.per_group):
            request = sample_request(rng, level, group, args.split)
            scene = one_plan(request, rng, level)
            right.update(way for way, draw in ways.items() if judge(request, draw(scene)).correct)
        means[group] = {way: right[way] / args.per_group for way in ways}
        print(f"{group:15}" + "".join(f"{means[group][way]:11.2f}" for way in ways))
    long = [shares for group, shares in means.items() if group.endswith("_objects")]
    best = max(np.mean([shares[way] for shares in long]) for way in ways if way != "composed")
    print(f"three and more {best:.2f}")


if __name__ == "__main__":
    main()
