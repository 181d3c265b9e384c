"""The compiled pieces of the sampler, lowered for devices that need not be there.

What `Sampler` calls in a step of the process, with shapes instead of arrays, each
program where it is first called: `begin`, `enter`, `write` for each text, `draw` and
`look` for each image, `decide`, `commit`, and for images of all kinds `show` and `see`.
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
from process_gen.sampling import stages
from process_gen.sampling.config import SamplerConfig
from process_gen.sampling.stages import Work
from process_gen.sampling.text import TextSpec


@dataclasses.dataclass(frozen=True)
class Piece:
    """One program.

    Attributes:
      name: for a table.
      lower: lowers it.
      held: what is in memory while it runs, whether it is given it or not: weights and contexts, as shapes.
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
    """The pieces, one after the other.

    Args:
      model: the modules.
      texts: how texts are decoded, see `sampler.text_specs`.
      config: how to sample.
      params, frozen: of the model and its autoencoder, `jax.ShapeDtypeStruct` with shardings.
      rows: trajectories under way at once.
      mesh: the devices.
      axes: mesh axes that the rows are split over; () where every device has them all.
    """
    flow, ids, layout = config.flow, model.ids, model.layout

    def placed(tree):
        def place(x):
            spec = P(None, axes) if x.ndim == 5 else P(axes) if x.ndim else P()
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

        return jax.tree.map(place, tree)

    weights = (params, frozen)

    def piece(name, contexts, function, *args):
        held = (weights, contexts)
        return Piece(name, lambda: function.lower(*args), held), placed(function.eval_shape(*args))

    array = jax.ShapeDtypeStruct
    images = placed(array((rows, *layout.image_size, 3), jnp.uint8))
    see, (latents, view) = piece("see", None, stages.see, model, images, frozen)
    prompts = stages.Prompts(
        tokens=placed(array((rows, layout.prompt), jnp.int32)),
        latents=latents if layout.prompt_image else None,
        view=view if layout.prompt_image else None,
        has_image=placed(array((rows,), jnp.bool_)) if layout.prompt_image else None,
        instruction=placed(array((rows, layout.instruction), jnp.int32)) if layout.instruction else None,
    )
    begin, (prompt, next_id, _) = piece("begin", None, stages.begin, model, params, prompts)
    yield begin
    keys = placed(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows)))
    present = placed(array((rows,), jnp.bool_))

    def fresh(prompt, next_id):
        context = placed(stages.blank.eval_shape(model, params, prompt, next_id))
        return Work(context, {}, context.next_id, present, keys)

    work = fresh(prompt, next_id)
    if flow.own and "noimg" in flow.branches:
        work = work.replace(texts=fresh(prompt, next_id))
    contexts = (work.context, work.texts)  # of trajectories under way, which new prompts join
    yield piece("enter", contexts, stages.enter, work.context, prompt, next_id, present)[0]
    for stage, name in (
        ("write", "plan"),
        ("draw", "sketch"),
        ("write", "inspect"),
        ("write", "refine"),
        ("draw", "refined"),
    ):
        if stage == "write":
            made, new = piece(f"write {name}", work, stages.write, model, texts[name], name, params, work)
            yield made
        else:
            made, drawn = piece(f"draw {name}", work, stages.draw, model, flow, name, params, work)
            yield made
            if name == "sketch":
                yield piece("show", work, stages.show, model, drawn, frozen)[0]
                yield dataclasses.replace(see, held=(weights, work))
            made, new = piece(f"look {name}", work, stages.look, model, params, latents, view, work)
            yield made
        if name == "inspect":
            choices = (ids.refine, ids.ins, ids.end_of_text)
            given = (model, choices, config.temperature, "after_inspect", params, new.end)
            yield piece("decide", work, stages.decide, *given, work.adding(name, new))[0]
        work = work.adding(name, new)
    yield piece("commit", work, stages.commit, model, params, work, present)[0]
