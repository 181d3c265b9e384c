"""The sampler's compiled pieces, lowered with shapes alone, are those that it calls."""

from __future__ import annotations

import jax
import pytest

from process_gen.data.tokenizers import scenes_tokenizer
from process_gen.distributed.mesh import MeshConfig, make_mesh
from process_gen.sampling import Sampler, SamplerConfig, turn
from process_gen.sampling.pieces import pieces
from process_gen.sampling.text import text_specs
from tests.sampling.sampling_models import make_model, random_params

NAMES = [
    "prefill", "enter", "decode_text before", "sample_image", "decode_image", "encode_image", "append_image",
    "decide", "decode_text after", "commit",
]  # fmt: skip


def found_pieces():
    model, tokenizer, params = make_model(), scenes_tokenizer(), random_params()
    config = SamplerConfig(flow_steps=2, text_scale=2.0, image_scale=1.5)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    specs = text_specs(model, tokenizer, config)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    return {one.name: one for one in pieces(model, specs, config, shapes, None, 2, mesh, ("data", "fsdp"))}


@pytest.mark.slow  # it traces the whole sampler
def test_every_piece_of_a_turn_is_there():
    found, params = found_pieces(), random_params()
    assert list(found) == NAMES
    held = {name: sum(x.size for x in jax.tree.leaves(one.held)) for name, one in found.items()}
    weights = sum(x.size for x in jax.tree.leaves(params))
    assert weights == held["prefill"] < held["enter"] == held["sample_image"] == held["commit"]
    lowered = found["decide"].lower()
    assert isinstance(lowered, jax.stages.Lowered) and "stablehlo" in lowered.as_text()


def test_a_sampler_decodes_with_the_same_specs():
    model, tokenizer, config = make_model(), scenes_tokenizer(), SamplerConfig(temperature=0.5)
    sampler = Sampler(model, random_params(), tokenizer, config, rows=2)
    assert sampler._texts == text_specs(model, tokenizer, config)
    assert set(sampler._texts) == {name.split()[-1] for name in NAMES if name.startswith("decode_text")} | {
        "answer"
    }
    assert set(sampler._texts) <= set(turn.RNG_STREAMS)
