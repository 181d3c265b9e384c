"""The sampler's programs with abstract arguments, to lower for devices that need not be present.

They are those that `Sampler` calls in a turn: `prefill` and `enter` for prompts,
`decode_text` for each text, `sample_image` and `append_image` for the image,
`decide`, `commit`, and for images of all kinds `decode_image` and `encode_image`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from process_gen.models.unified import UnifiedModel
from process_gen.sampling import turn
from process_gen.sampling.config import SamplerConfig
from process_gen.sampling.decisions import Opens
from process_gen.sampling.state import SamplingState
from process_gen.sampling.text import TextSpec


@dataclasses.dataclass(frozen=True)
class Piece:
    """One program.

    Attributes:
      held: shapes of what is in memory while it runs, argument or not: weights and contexts.
    """

    name: str
    lower: Callable[[], jax.stages.Lowered]
    held: Any


def pieces(
    model: UnifiedModel,
    texts: dict[str, TextSpec],
    config: SamplerConfig,
    params: Any,
    frozen: Any,
    rows: int,
    mesh: Mesh,
    axes: tuple[str, ...],
) -> Iterator[Piece]:
    """Yields the programs, in the order of a turn.

    Args:
      texts: how texts are decoded, see `text.text_specs`.
      params, frozen: of the model and its autoencoder, `jax.ShapeDtypeStruct` with shardings.
      rows: trajectories at once, the batch size.
      axes: mesh axes that the rows are split over; () where every device has them all.
    """
    model = turn.for_sampling(model)
    layout, weights, array = model.layout, (params, frozen), jax.ShapeDtypeStruct

    def placed(tree):
        def place(x):
            spec = P(None, axes) if x.ndim == 5 else P(axes) if x.ndim else P()
            return array(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

        return jax.tree.map(place, tree)

    def piece(name, contexts, function, *args):
        held = (weights, contexts)
        return Piece(name, lambda: function.lower(*args), held), placed(function.eval_shape(*args))

    images = placed(array((rows, *layout.image_size, 3), jnp.uint8))
    encode, (latents, patches) = piece("encode_image", None, turn.encode_image, model, images, frozen)
    prompts = {"text": placed(array((rows, layout.prompt), jnp.int32))}
    if layout.prompt_image:
        has_image = placed(array((rows,), jnp.bool_))
        prompts |= {"latents": latents, "patches": patches, "has_image": has_image}
    if layout.instruction:
        prompts["instruction"] = placed(array((rows, layout.instruction), jnp.int32))
    prefill, (prompt, position, end) = piece("prefill", None, turn.prefill, model, params, prompts)
    yield prefill
    keys = placed(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows)))
    present = placed(array((rows,), jnp.bool_))

    def fresh():
        context, empty = placed(turn.new_context.eval_shape(model, prompt, position))
        return SamplingState(context, empty, position, present, present, keys)

    state = fresh()
    if "noimg" in config.flow.branches:
        state = state.replace(texts=fresh())  # guidance by images keeps a second context
    yield piece("enter", state, turn.enter, state.context, present, prompt, position)[0]

    def text(part):
        given = placed(array((rows, texts[part].size), jnp.int32))
        return piece(
            f"decode_text {part}", state, turn.decode_text, model, texts[part], part, params, state, given
        )[0]

    if layout.before:
        yield text("before")
    image, drawn = piece("sample_image", state, turn.sample_image, model, config.flow, params, state)
    yield image
    yield piece("decode_image", state, turn.decode_image, model, drawn, frozen)[0]
    yield dataclasses.replace(encode, held=(weights, state))
    yield piece("append_image", state, turn.append_image, model, params, latents, patches, state)[0]
    settings = (config.decides_at, config.refine_threshold, "after_image")
    allowed = placed(array((rows, len(Opens)), jnp.bool_))
    yield piece("decide", state, turn.decide, model, *settings, params, end, allowed, keys)[0]
    if layout.after:
        yield text("after")
    given = (state.context, state.turn, present, present)
    yield piece("commit", state, turn.commit, model, *given)[0]
