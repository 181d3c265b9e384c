"""The scanned unroll: `step` driven over the step slots of packed rows.

B rows, S step slots, R trajectories of a row, J noised copies, N latent tokens
of an image, V values of a latent token, T tokens of a text slot, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from process_gen.models import autoencoder, flow, vit
from process_gen.models.append_scan import append_scan
from process_gen.models.context import SLOTS, Context, Memory
from process_gen.models.step_io import PromptInputs, StepInputs, StepOutputs
from process_gen.models.unified import UnifiedModel, token_count
from process_gen.trajectory.batch import Batch


@dataclasses.dataclass(frozen=True)
class UnrollOptions:
    """What is drawn at random while training.

    Attributes:
      time_mean, time_std, time_shift: logit-normal timesteps of the flow targets.
      drop_text, drop_images: probabilities, per step, that the flow targets do
        not see the newest text, or any clean image (guidance needs both).
      context_noise: largest standard deviation of the Gaussian noise on the
        clean images that later tokens see, in latent units. A model trained on
        perfect context drifts when it sees its own.
      context_noise_share: share of the images that get any.
      drop_latents, drop_views: probabilities, per clean image, that its latents
        or its ViT tokens are left out of the context for good (never both).
      sample_latents: whether the latents of an image are drawn from the
        autoencoder's distribution, as the published program trains, instead of
        being its means. Latents that were encoded ahead of time are means.
    """

    time_mean: float = 0.0
    time_std: float = 1.0
    time_shift: float = 1.0
    drop_text: float = 0.1
    drop_images: float = 0.1
    context_noise: float = 0.0
    context_noise_share: float = 0.7
    drop_latents: float = 0.0
    drop_views: float = 0.0
    sample_latents: bool = False

    def __post_init__(self):
        if min(self.drop_latents, self.drop_views) < 0 or self.drop_latents + self.drop_views > 1:
            raise ValueError(
                "flow.drop_latents and flow.drop_views are shares that never fall on the same image, got "
                f"{self.drop_latents} and {self.drop_views}"
            )


HIDDEN = (
    "plan",
    "inspect",
    "refine",
    "sketch_end",
    "refined_end",
    "sketch_noised_end",
    "refined_noised_end",
)
"""The hidden states of a step that losses read, by their names in `StepOutputs`."""

NO_RANDOM_DROPS = UnrollOptions(drop_text=0.0, drop_images=0.0)


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What losses read.

    Attributes:
      hidden: `plan`, `inspect`, `refine` [B, S, T, D]; `sketch_end`,
        `refined_end` [B, S, D]; `sketch_noised_end`, `refined_noised_end`
        [B, S, J, D]; `prompt_end` [B, R, D].
      velocity, target: `sketch`, `refine` [B, S, J, N, V], predicted and true velocity.
      t: `sketch`, `refine` [B, S, J] timesteps.
      present: `sketch`, `refine` [B, S] bool, whether there is a target.
      images: `before`, `sketch`, `refine` [B, S, N, V] latents: the visual state
        that a step starts from (zeros at the first), and the targets.
      head: hidden states [..., D] to logits [..., vocabulary].
      score: hidden states [B, ..., D] and labels [B, ...] to -log p [B, ...], without
        all logits in memory where `model.logit_chunk` says so.
      in_chunks: whether it does.
      scores: -log p by name of a hidden state, where `scored` has computed it.
    """

    hidden: Mapping[str, jax.Array]
    velocity: Mapping[str, jax.Array]
    target: Mapping[str, jax.Array]
    t: Mapping[str, jax.Array]
    present: Mapping[str, jax.Array]
    images: Mapping[str, jax.Array]
    head: Callable[[jax.Array], jax.Array]
    score: Callable[[jax.Array, jax.Array], jax.Array]
    in_chunks: bool = False
    scores: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)

    def cross_entropy(self, name: str, labels: Mapping[str, jax.Array]) -> jax.Array:
        """-log p of `labels[name]` at `hidden[name]`, [B, ...] float32; any number where that is padding."""
        if name in self.scores:
            return self.scores[name]
        return self.score(self.hidden[name], labels[name])

    def scored(self, labels: Mapping[str, jax.Array]) -> Outputs:
        """With the labels of all hidden states scored in one loop over the vocabulary, if it is in chunks.

        Several losses read the same tokens, and a loop is not shared by itself as products are.
        """
        if not self.in_chunks:
            return self
        names = [name for name in self.hidden if name in labels]
        rows, width = labels[names[0]].shape[0], self.hidden[names[0]].shape[-1]
        hidden = jnp.concatenate([self.hidden[name].reshape(rows, -1, width) for name in names], axis=1)
        flat = jnp.concatenate([labels[name].reshape(rows, -1) for name in names], axis=1)
        values, start, scores = self.score(hidden, flat), 0, {}
        for name in names:
            length = labels[name].size // rows
            scores[name] = values[:, start : start + length].reshape(labels[name].shape)
            start += length
        return dataclasses.replace(self, scores=scores)


def _flow_targets(key: jax.Array, clean: jax.Array, copies: int, options: UnrollOptions):
    """x_t [B, S, J, N, V], t [B, S, J] and the true velocity of `clean` [B, S, N, V]."""
    time_key, noise_key = jax.random.split(key)
    b, s = clean.shape[:2]
    t = flow.sample_time(time_key, (b, s, copies), options.time_mean, options.time_std, options.time_shift)
    noise = jax.random.normal(noise_key, (b, s, copies, *clean.shape[2:]))
    x = jnp.broadcast_to(clean[:, :, None], noise.shape)
    return flow.add_noise(x, noise, t), t, noise - x


def _perturbed(key: jax.Array, clean: jax.Array, options: UnrollOptions) -> jax.Array:
    """Clean images [B, S, N, V] with noise on a share of them."""
    if not options.context_noise:
        return clean
    share_key, level_key, noise_key = jax.random.split(key, 3)
    chosen = jax.random.bernoulli(share_key, options.context_noise_share, clean.shape[:2])
    level = chosen * jax.random.uniform(level_key, clean.shape[:2], maxval=options.context_noise)
    return clean + level[:, :, None, None] * jax.random.normal(noise_key, clean.shape)


def latents_of(
    model: UnifiedModel, images: jax.Array, frozen: Any, key: jax.Array | None = None
) -> jax.Array:
    """Latent tokens [B, S, N, V] of images [B, S, H, W, 3]; slot by slot where that takes weights.

    They are means, or with a `key` drawn from the autoencoder's distribution.
    """
    if frozen is None:
        return autoencoder.to_tokens(model.config, images)
    slots = jnp.moveaxis(images, 1, 0)
    keys = None if key is None else jax.random.split(key, len(slots))
    latents = jax.lax.map(lambda x: autoencoder.to_tokens(model.config, x[0], frozen, x[1]), (slots, keys))
    return jnp.moveaxis(latents, 0, 1)


def _drawn(key: jax.Array, image: int, options: UnrollOptions) -> jax.Array | None:
    """The key of the latents of draft, correction or input image; None where they are means."""
    return jax.random.fold_in(key, 7 + image) if options.sample_latents else None


def views_of(model: UnifiedModel, images: jax.Array, latents: jax.Array) -> jax.Array | None:
    """What the ViT sees of images in context, [B, (S,) P, U]; None where the layout has no room for it.

    Where latents are pixels it sees the `latents` [..., N, V], with the noise
    that they carry, else the images [B, (S,) H, W, 3].
    """
    if not model.layout.vit_tokens:
        return None
    if model.config.autoencoder == "patches":
        return vit.to_patches(model.config, model.layout, latents)
    if images.ndim == 4:
        return vit.patches_of(model.config, model.layout, images)
    slots = jnp.moveaxis(images, 1, 0)  # one at a time: enlarged in float32 they take far more room
    views = jax.lax.map(lambda x: vit.patches_of(model.config, model.layout, x), slots)
    return jnp.moveaxis(views, 0, 1)


def _left_out(model: UnifiedModel, key: jax.Array, shape: tuple[int, ...], options: UnrollOptions):
    """[B, S] bool by clean image segment: what stays in context; empty where nothing is ever left out."""
    if not (options.drop_latents or options.drop_views):
        return {}
    there = {}
    for i, name in enumerate(("sketch", "refined")):
        drawn = jax.random.uniform(jax.random.fold_in(key, i), shape)
        there[name] = drawn >= options.drop_latents
        if model.layout.vit_tokens:
            there[f"{name}_vit"] = drawn < 1.0 - options.drop_views
    return there


def step_inputs(
    model: UnifiedModel, batch: Batch, key: jax.Array, options: UnrollOptions, frozen: Any = None
) -> tuple[StepInputs, dict[str, Any]]:
    """Everything that the scan feeds its steps, [B, S, ...], and the flow targets besides.

    The sketch's target is the draft where it is right, else the corrected
    image; a wrong draft that nobody corrected has no target. `frozen` are the
    weights of an autoencoder that has any; images that the batch holds as
    latents do not go through it.
    """
    keys = jax.random.split(key, 6)
    has_refine = (token_count(batch.refine_tokens) > 0) & batch.present
    sketch, refined = (
        latents_of(model, images, frozen, _drawn(key, i, options))
        if latents is None
        else latents.astype(jnp.float32)
        for i, (images, latents) in enumerate(
            ((batch.sketch, batch.sketch_latents), (batch.refined, batch.refined_latents))
        )
    )
    goal = jnp.where((batch.sketch_ok | ~has_refine)[:, :, None, None], sketch, refined)
    layout, shape = model.layout, batch.present.shape
    sketch_noised, sketch_t, sketch_target = _flow_targets(keys[0], goal, layout.sketch_copies, options)
    refined_noised, refined_t, refined_target = _flow_targets(
        keys[1], refined, layout.refined_copies, options
    )
    seen_sketch = _perturbed(keys[2], sketch, options)
    seen_refined = _perturbed(keys[3], refined, options)
    inputs = StepInputs(
        present=batch.present,
        plan=batch.plan_tokens,
        inspect=batch.inspect_tokens,
        refine=batch.refine_tokens,
        sketch=seen_sketch,
        refined=seen_refined,
        sketch_noised=sketch_noised,
        refined_noised=refined_noised,
        sketch_t=sketch_t,
        refined_t=refined_t,
        hide_text=jax.random.bernoulli(keys[4], options.drop_text, shape),
        hide_images=jax.random.bernoulli(keys[5], options.drop_images, shape),
        sketch_view=views_of(model, batch.sketch, seen_sketch),
        refined_view=views_of(model, batch.refined, seen_refined),
        there=_left_out(model, jax.random.fold_in(key, 6), shape, options),
    )
    state = jnp.where(has_refine[:, :, None, None], refined, sketch)
    before = jnp.pad(state, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
    return inputs, {
        "target": {"sketch": sketch_target, "refine": refined_target},
        "t": {"sketch": sketch_t, "refine": refined_t},
        "present": {"sketch": batch.present & (batch.sketch_ok | has_refine), "refine": has_refine},
        "images": {
            "before": jnp.where(batch.reset[:, :, None, None], 0.0, before),
            "sketch": goal,
            "refine": refined,
        },
    }


def prompt_inputs(
    model: UnifiedModel, batch: Batch, key: jax.Array, options: UnrollOptions, frozen: Any = None
) -> PromptInputs:
    """The prompts of a batch, [B, R, ...]; arguments as of `step_inputs`."""
    if not model.layout.prompt_image:
        return PromptInputs(batch.prompt_tokens, instruction=batch.instruction_tokens)
    latents = batch.prompt_latents
    if latents is None:
        latents = latents_of(model, batch.prompt_image, frozen, _drawn(key, 2, options))
    there = {s.name: batch.has_prompt_image for s in model.layout.prompt_parts["prompt_image"]}
    view = views_of(model, batch.prompt_image, latents)
    return PromptInputs(batch.prompt_tokens, latents, view, batch.instruction_tokens, there)


def _select(prompts: Memory, index: jax.Array) -> Memory:
    """The memory of one prompt per row: [Y, B, R, ...] at `index` [B]."""
    pick = index[:, None] == jnp.arange(prompts.visible.shape[1])[None]
    weights = pick.astype(prompts.k.dtype)
    return Memory(
        jnp.einsum("ybrkmh,br->ybkmh", prompts.k, weights),
        jnp.einsum("ybrkmh,br->ybkmh", prompts.v, weights),
        (prompts.visible & pick[:, :, None]).any(1),
    )


def scan_steps(
    model: UnifiedModel,
    params: Any,
    batch: Batch,
    inputs: StepInputs,
    prompts: PromptInputs | None = None,
    traced: bool = False,
) -> tuple[jax.Array, StepOutputs, Context]:
    """Reads every prompt once, then scans `step` over the step slots.

    Args:
      model, params: the modules and their parameters.
      batch: says which prompt a step draws, and where a trajectory starts.
      inputs: what the steps are fed, [B, S, ...].
      prompts: [B, R, ...]; the texts of the batch by default.
      traced: whether the hidden states and rotary ids of all tokens are returned too.

    Returns:
      The hidden state [B, R, D] of each prompt's last token; step outputs
      [B, S, ...]; the context after the last slot. If `traced`, also of all
      tokens of the `prompt` [B, R, ...] and `step` [B, S, ...] chunks, in memory
      order: `hidden` states by stream, and rotary `ids`.
    """
    rows, trajectories = batch.prompt_tokens.shape[:2]
    mutable = ["trace"] if traced else False

    def apply(method, *args, params=params):
        out = model.apply({"params": params}, *args, method=method, mutable=mutable)
        (result, seen) = out if traced else (out, {"trace": {}})
        return result, {name: values[0] for name, values in seen["trace"].items()}

    prompts = PromptInputs(batch.prompt_tokens) if prompts is None else prompts
    flat = jax.tree.map(lambda x: x.reshape(rows * trajectories, *x.shape[2:]), prompts)
    # A full history can be longer than memory allows: then it is kept once, and prompts are read again.
    appends = model.config.remat_steps and model.layout.context == "full"
    begin = jax.checkpoint(apply, static_argnums=0) if appends else apply
    (opened, prompt_end), prompt_trace = begin("begin", flat)

    def unflatten(x, axis):
        return x.reshape(*x.shape[:axis], rows, trajectories, *x.shape[axis + 1 :])

    prompts = Memory(
        unflatten(opened.prompt.k, 1), unflatten(opened.prompt.v, 1), unflatten(opened.prompt.visible, 0)
    )
    prompt_ids = unflatten(opened.next_id, 0)

    def opened_for(context: Context, prompts: Memory, ids: jax.Array, reset: jax.Array, index: jax.Array):
        """The context that a step starts from: with its own prompt, and no history where one begins."""
        first = jnp.take_along_axis(ids, index[:, None], 1)[:, 0]
        return context.replace(
            prompt=_select(prompts, index),
            history=context.history.only(~reset),
            next_id=jnp.where(reset, first, context.next_id),
        )

    def body(context: Context, xs):
        reset, index, one = xs
        context = opened_for(context, prompts, prompt_ids, reset, index)
        (context, outputs), trace = apply("step", context, one)
        return context, (outputs, trace)

    def appending(weights, context: Context, history, xs):
        (params, prompts, ids), (reset, index, one) = weights, xs
        context = context.replace(history=Memory(*history, context.history).constrained())
        context = opened_for(context, prompts, ids, reset, index)
        (new, next_id, outputs), trace = apply("read_step", context, one, params=params)
        written = model.written(new, one.present).constrained()
        at = context.slot * model.layout.visible_tokens
        visible = jax.lax.dynamic_update_slice_in_dim(context.history.visible, written.visible, at, 1)
        next_id = jnp.where(one.present, next_id, context.next_id)
        context = context.replace(prompt=None, history=visible, next_id=next_id, slot=context.slot + 1)
        return context, (written.k, written.v), (outputs, trace)

    context = model.apply({"params": params}, rows, method="empty_context")
    xs = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (batch.reset, batch.prompt_index, inputs))
    if appends:
        start = context.replace(prompt=None, history=context.history.visible)
        history = (context.history.k, context.history.v)
        weights = (params, prompts, prompt_ids)
        end, history, outputs = append_scan(appending, weights, start, history, xs, axis=SLOTS)
        last = _select(prompts, batch.prompt_index[:, -1])
        context = end.replace(prompt=last, history=Memory(*history, end.history))
    else:
        body = jax.checkpoint(body, prevent_cse=False) if model.config.remat_steps else body
        context, outputs = jax.lax.scan(body, context, xs)
    outputs, trace = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), outputs)
    prompt_end = unflatten(prompt_end, 0)
    if traced:
        prompt_trace = jax.tree.map(lambda x: unflatten(x, 0), prompt_trace)
        return prompt_end, outputs, context, {"prompt": prompt_trace, "step": trace}
    return prompt_end, outputs, context


def unroll(
    model: UnifiedModel,
    params: Any,
    batch: Batch,
    key: jax.Array,
    options: UnrollOptions = NO_RANDOM_DROPS,
    frozen: Any = None,
) -> Outputs:
    """Runs a batch of packed rows through the scanned step, teacher-forced.

    Args:
      model: the modules.
      params: their parameters.
      batch: packed rows (see `Batch`).
      key: draws timesteps, noise and conditioning dropout.
      options: how they are drawn.
      frozen: weights of an autoencoder that has any.

    Returns:
      What the losses read.
    """
    inputs, flows = step_inputs(model, batch, key, options, frozen)
    prompts = prompt_inputs(model, batch, key, options, frozen)
    prompt_end, outputs, _ = scan_steps(model, params, batch, inputs, prompts)
    return gathered(model, params, prompt_end, outputs, flows)


def gathered(
    model: UnifiedModel, params: Any, prompt_end: jax.Array, outputs: StepOutputs, flows: Mapping[str, Any]
) -> Outputs:
    """The results of a scan and its flow targets, as losses read them."""
    return Outputs(
        hidden={"prompt_end": prompt_end, **{name: getattr(outputs, name) for name in HIDDEN}},
        velocity={"sketch": outputs.sketch_velocity, "refine": outputs.refined_velocity},
        head=lambda hidden: model.apply({"params": params}, hidden, method="logits"),
        score=lambda hidden, labels: model.apply({"params": params}, hidden, labels, method="cross_entropy"),
        in_chunks=model.config.logits_in_chunks,
        **flows,
    )


def blank_outputs(
    model: UnifiedModel, batch: Batch, key: jax.Array, options: UnrollOptions, frozen: Any = None
) -> Outputs:
    """`unroll` with zeros for everything that the model predicts: enough to count targets."""
    _, flows = step_inputs(model, batch, key, options, frozen)
    (rows, steps), width, layout = batch.present.shape, model.config.width, model.layout
    lengths = {"plan": (layout.plan,), "inspect": (layout.inspect,), "refine": (layout.refine,)}
    lengths |= {"sketch_noised_end": (layout.sketch_copies,), "refined_noised_end": (layout.refined_copies,)}
    hidden = {name: jnp.zeros((rows, steps, *lengths.get(name, ()), width)) for name in HIDDEN}
    hidden["prompt_end"] = jnp.zeros((rows, batch.prompt_tokens.shape[1], width))
    return Outputs(
        hidden=hidden,
        velocity={name: jnp.zeros_like(target) for name, target in flows["target"].items()},
        head=lambda hidden: jnp.zeros((*hidden.shape[:-1], model.config.vocab_size)),
        score=lambda _, labels: jnp.full(labels.shape, jnp.log(float(model.config.vocab_size))),
        **flows,
    )
