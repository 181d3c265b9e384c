"""The scenes world: prompts, scene graphs, a renderer, a parser, a judge and a teacher."""

from process_gen.scenes.grammar import read_request
from process_gen.scenes.graph import Object, Scene, scene_from_json
from process_gen.scenes.judge import Check, Verdict, judge
from process_gen.scenes.levels import LEVELS, Level, get_level
from process_gen.scenes.parse import parse, parse_batch
from process_gen.scenes.prompts import sample_request
from process_gen.scenes.render import render
from process_gen.scenes.requests import CATEGORIES, Clause, Request, categories
from process_gen.scenes.splits import SPLITS
from process_gen.scenes.teacher import baseline, corpus, teach, texts, vocabulary

__all__ = [
    "CATEGORIES",
    "LEVELS",
    "SPLITS",
    "Check",
    "Clause",
    "Level",
    "Object",
    "Request",
    "Scene",
    "Verdict",
    "baseline",
    "categories",
    "corpus",
    "get_level",
    "judge",
    "parse",
    "parse_batch",
    "read_request",
    "render",
    "sample_request",
    "scene_from_json",
    "teach",
    "texts",
    "vocabulary",
]
