"""The scenes world: prompts, scene graphs, a renderer, a parser, a judge and a teacher."""

from process_gen.scenes.grammar import read_request
from process_gen.scenes.graph import Scene, scene_from_json
from process_gen.scenes.judge import judge
from process_gen.scenes.levels import get_level
from process_gen.scenes.parse import parse
from process_gen.scenes.prompts import sample_request
from process_gen.scenes.render import render
from process_gen.scenes.requests import Request, categories
from process_gen.scenes.teacher import baseline, teach, texts

__all__ = [
    "Request",
    "Scene",
    "baseline",
    "categories",
    "get_level",
    "judge",
    "parse",
    "read_request",
    "render",
    "sample_request",
    "scene_from_json",
    "teach",
    "texts",
]
