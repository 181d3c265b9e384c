"""Scene graphs of free prompts, and the paths that draw them."""

import copy

import numpy as np
import pytest
from recipe_fakes import GRAPH

from process_gen.recipe.graphs import SCHEMA, GraphError, contradiction, read_graph
from process_gen.recipe.strokes import describe, plant, schedule, with_article

SEEDS = range(40)
REWRITES = ("modify", "swap", "remove")


def changed(**fields):
    return {**copy.deepcopy(GRAPH), **fields}


def relation(subject, name, target):
    return {"subject": subject, "relation": name, "target": target}


def test_a_graph_is_read_as_it_stands_there():
    graph = read_graph(GRAPH)
    assert [thing.noun for thing in graph.things] == ["brown dog", "old sofa", "lamp"]
    assert graph.extras == ("book",) and graph.relations[0].target == "sofa"
    part = graph.part(["dog", "lamp"])
    assert [thing.name for thing in part.things] == ["dog", "lamp"] and not part.relations
    assert set(SCHEMA["required"]) == set(GRAPH) and SCHEMA["additionalProperties"] is False


@pytest.mark.parametrize(
    "value, message",
    [
        ([], "a graph is a JSON object"),
        (changed(objects="dog"), "objects is no list"),
        (changed(objects=[]), "1 to 12 objects, this one 0"),
        (changed(objects=[{"name": "dog", "attributes": [3]}]), r"objects\[0\].attributes\[0\] is no text"),
        (changed(objects=[{"name": "<ins>", "attributes": []}]), "must not contain the token <ins>"),
        (changed(objects=GRAPH["objects"][:1] * 2), "two objects are called 'dog'"),
        (changed(relations=[relation("dog", "on", "bed")]), "a relation names 'bed'"),
        (changed(relations=[relation("dog", "on", "dog")]), "'dog' is on itself"),
        (
            changed(relations=[relation("dog", "on", "sofa"), relation("dog", "under", "sofa")]),
            "'dog' is on and under 'sofa'",
        ),
        (
            changed(relations=[relation("dog", "above", "sofa"), relation("sofa", "above", "dog")]),
            "'dog' is above and below 'sofa'",
        ),
        (
            changed(
                relations=[
                    relation("dog", "left of", "sofa"),
                    relation("lamp", "right of", "sofa"),
                    relation("lamp", "left of", "dog"),
                ]
            ),
            "the relations 'left of' form a circle",
        ),
    ],
)
def test_what_is_no_graph_or_contradicts_itself_is_named(value, message):
    with pytest.raises(GraphError, match=message):
        read_graph(value)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_path_grows_without_contradiction_to_the_same_end(seed):
    graph, most = read_graph(GRAPH), 3 + seed % 3
    path = schedule(np.random.default_rng(seed), graph, most, 1.0, 0.4)
    assert len(path) <= most and path[-1].plan.description == describe(graph)
    assert sum(kind in REWRITES for stroke in path for kind in stroke.kinds) == 1
    for stroke in path:
        assert contradiction(stroke.state) is None and stroke.plan.description == describe(stroke.state)
    plain = schedule(np.random.default_rng(seed), graph, most, 0.0, 0.4)
    assert {kind for stroke in plain for kind in stroke.kinds} == {"add"}
    sizes = [len(stroke.state.things) for stroke in plain]
    assert sizes == sorted(set(sizes)) and sizes[-1] == 3


def test_all_rewrites_come_up():
    graph = read_graph(GRAPH)
    paths = [schedule(np.random.default_rng(seed), graph, 5, 1.0, 0.3) for seed in SEEDS]
    assert {kind for path in paths for stroke in path for kind in stroke.kinds} == {"add", *REWRITES}
    assert any("the sofa under the dog" in str(path) or "under the dog" in str(path) for path in paths)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_planted_conflict_is_one_step_that_one_instruction_repairs(seed):
    graph = read_graph(GRAPH)
    planted = plant(np.random.default_rng(seed), graph, 4, 0.3)
    assert planted.wrong.plan != planted.right.plan
    ends = planted.rest[-1] if planted.rest else planted.right
    assert ends.plan.description == describe(graph)
    assert planted.analysis.startswith("the prompt ") and planted.correction


def test_a_graph_that_allows_no_conflict_has_none():
    assert plant(np.random.default_rng(0), read_graph(GRAPH).part(["lamp"]), 4, 0.3) is None


def test_articles():
    assert [with_article(one) for one in ("dog", "old sofa", "two dogs", "the sea")] == [
        "a dog", "an old sofa", "two dogs", "the sea",
    ]  # fmt: skip
