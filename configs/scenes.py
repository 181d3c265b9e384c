"""The scenes world: coloured shapes on a canvas, learned from scratch.

    python -m process_gen.train --config=configs/scenes.py:quick --workdir=runs/quick

`:debug` takes seconds, for tests; `:quick` is the README's main job; `:full` trains longer;
`:hung` the level whose texts name no cell. Baselines with the training FLOP
of the variant in their name: `:hung_plan_only` draws one image after a plan,
`:hung_single_pass` one image without a plan, `:hung_no_inspection` draws in steps without
inspections; likewise `quick_` and `full_`. `:hung_critiques` continues a run of `:hung`,
with exact critiques of what it drew. Every key can be overridden: `--config.train.steps=100`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

ARMS = ("plan_only", "single_pass", "no_inspection")
GFLOP = {  # of a train step: the process, then each of ARMS (tests/benchmarks/step_flops.py)
    "quick": (18.5, 19.0, 13.7, 16.4),
    "full": (21.7, 22.1, 16.8, 19.4),
    "hung": (33.4, 39.3, 30.9, 33.0),
}


def get_config(variant: str = "quick") -> ConfigDict:
    """Returns the locked config of a variant, of those that the docstring of this file names."""
    lengths = {"debug": _debug, "quick": _quick, "full": _full, "hung": _hung, "hung_critiques": _critiques}
    variants = {name: (name, None) for name in lengths} | {
        f"{name}_{arm}": (name, arm) for name in GFLOP for arm in ARMS
    }
    if variant not in variants:
        raise ValueError(f"configs/scenes.py has no variant {variant!r}; it has {', '.join(variants)}")
    length, arm = variants[variant]
    config = _base()
    lengths[length](config)
    if arm:
        if arm == "no_inspection":
            _no_inspection(config)
        else:
            _one_image(config, arm)
        process, *others = GFLOP[length]
        config.train.steps = round(config.train.steps * process / others[ARMS.index(arm)])
    return config.lock()


def _base() -> ConfigDict:
    config = ConfigDict()
    config.name = "scenes"
    config.seed = 0

    config.model = ConfigDict(
        dict(
            size="scenes_s",
            dtype="float32",
            attention="dense",  # or flash, which keeps no scores in memory: process_gen/models/README.md
            remat="none",  # activations kept for the backward pass: process_gen/models/remat.py
            scan_unroll=4,  # layers per iteration of the scan over layers
            autoencoder="patches",  # latents are pixels; or flux, with its sizes in `flux`
            prediction="clean",  # what the latent head predicts: the image without noise; or velocity
            logit_chunk=0,  # vocabulary entries whose logits the losses compute at a time; 0: all
            # LoRA adapters: a rank above 0 freezes all other parameters (configs/README.md).
            lora=dict(rank=0, alpha=16.0, patterns=("backbone/layers/*/[qkvo]_proj/kernel",)),
        )
    )
    config.layout = ConfigDict(
        dict(
            image_size=(32, 32),
            vit_grid=(0, 0),  # (4, 4): each image in context is also given as 4 x 4 ViT tokens
            prompt=36,  # tokens of its text
            prompt_image=False,  # True: a prompt may show an input image, and an `instruction` after it
            instruction=0,  # tokens of that instruction; 0: none
            before=40,  # tokens of a plan or a refine instruction
            after=18,  # tokens of an inspection
            turns=8,  # turn slots of a row
            trajectories=4,  # of a row, at most
            copies=4,  # noised copies of an image, each a flow target
            context="step",  # which earlier turns are seen; or full, last (trajectory/visibility.py)
            corrections=1,  # refine turns of a step, at most
        )
    )
    config.data = ConfigDict(
        dict(
            source="scenes",  # or with `path`: folder, parquet, genref, .. (process_gen/data/README.md)
            path="",
            sources=dict(),  # a mixture: name -> keys that differ from these, and path, weight and stages
            validation=0.01,  # share that is held out of sources without a validation split of their own
            fields=dict(),  # custom fields of a turn, for losses: dict(kept="mask") in scenes
            tokenizer="scenes",  # or the folder of a published Qwen2 tokenizer
            buckets=(),  # image sizes besides layout.image_size, for folders of pictures
            latents="",  # a folder of latents that `prepare` encodes, for autoencoders with weights
            level="default",
            mode="process",  # plan_only and single_pass are the baselines
            examples=20_000,
            data_dir="data",
            seed=0,
            wrong=0.15,  # share of drafts with a planted error that is inspected and refined
            misplan=0.15,  # share of plans with a planted error, which the draft shows; they get no text loss
            slip=0.05,  # share of drafts with an error that goes unnoticed until the next step
            detour=0.2,  # share of trajectories with changes, swaps and removals
            mixture=dict(),  # weights of the categories of prompts; none: those of the level
            threads=0,  # threads per host that read and decode ahead; 0: the packing thread does it
            on_error="fail",  # bad records; or "skip"
            on_long="split",  # longer than a row: split at a step; or "drop", as context="full" always does
        )
    )
    config.flow = ConfigDict(
        dict(
            time_mean=1.5,  # towards noise (t near 1), where the text decides what an image becomes
            time_std=1.2,
            time_shift=1.0,
            drop_text=0.1,  # probability of dropping the newest text before an image
            drop_images=0.05,  # of dropping all images of a trajectory
            drop_latents=0.0,  # of dropping the latents of an image in context
            drop_vit=0.0,  # of dropping its ViT tokens
            context_noise=0.4,  # largest standard deviation of the noise on images in context
            context_noise_share=0.7,  # share of those images that get any
            sample_latents=False,  # True: draws latents from the distribution of the `flux` autoencoder
        )
    )
    config.losses = ConfigDict(
        dict(
            plan_text=dict(loss="text_cross_entropy", stage="plan", weight=0.25),
            plan_decision=dict(loss="decision_cross_entropy", stage="plan", weight=0.02),
            # Flow losses are small numbers. With equal weights the understanding expert learns from the
            # texts, and the images hardly teach it which words matter for which cell.
            sketch_flow=dict(loss="flow_mse", stage="sketch", weight=10.0),
            sketch_decision=dict(loss="decision_cross_entropy", stage="sketch", weight=0.02),
            inspect_text=dict(loss="text_cross_entropy", stage="inspect", weight=0.25),
            inspect_decision=dict(loss="decision_cross_entropy", stage="inspect", weight=0.1),
            refine_text=dict(loss="text_cross_entropy", stage="refine", weight=0.1),
            refine_flow=dict(loss="flow_mse", stage="refine", weight=3.0),
            refine_decision=dict(loss="decision_cross_entropy", stage="refine", weight=0.05),
        )
    )
    config.optimizer = ConfigDict(
        dict(
            name="muon",  # or "adamw"
            muon_learning_rate=4e-2,  # of kernels of stacked layers; all else takes learning_rate
            learning_rate=4e-3,
            warmup_steps=50,
            final_share=0.02,  # end of the cosine, as a share of the learning rate (min_lr / lr)
            b1=0.9,
            b2=0.99,
            eps=1e-8,
            weight_decay=0.01,
            clip=1.0,  # global gradient norm (max_grad_norm)
            moment_dtype="float32",  # or bfloat16: of the first moment
            ema=0.998,  # decay of the moving average of the weights
            ema_warmup=True,  # False: constant from the first step on
            freeze=(),  # patterns of frozen parameters, as ("vit/*", "connector/*"): configs/README.md
            groups=dict(),  # factors on the rate: dict(gen=dict(pattern="backbone/*gen*", rate=0.1))
        )
    )
    config.train = ConfigDict(
        dict(
            init="",  # weights to start from: a run, file, published folder or "scenes"; "": random ones
            batch_size=4,
            steps=2_000,
            accumulate=1,  # gradient accumulation steps
            unroll="layers",  # the outer loop; or scan: an outer loop over turns, an inner one over layers
            max_nonfinite=1,  # steps in a row without a finite gradient that end the run; each is skipped
            # Replaces a share of the images in context by images of the model's own: configs/README.md.
            own=dict(share=0.0, every=8, keep=4096),
            offload="none",  # or optimizer, optimizer+ema: what is kept in host memory between steps
            log_every=50,
            checkpoint_every=500,
            local_every=0,  # steps between saves to local_dir, a local disk of each host; 0 for none
            local_dir="",
            keep=2,  # how many of the newest checkpoints are kept (max_to_keep)
            keep_every=0,  # checkpoints at multiples of it are never deleted; 0 for none
            keep_best=0,  # how many checkpoints with the best scores are kept besides
            profile=False,  # True: traces a few early steps (process_gen/training/profiling.py)
        )
    )
    config.mesh = ConfigDict(
        dict(data=-1, fsdp=1, tensor=1, context=1, dcn=dict(data=1, fsdp=1, tensor=1, context=1))
    )
    config.sampling = ConfigDict(
        dict(
            flow_steps=16,  # Euler steps of one image; num_timesteps - 1 in BAGEL
            time_shift=3.0,  # timestep_shift in BAGEL
            text_scale=1.0,  # cfg_text_scale in BAGEL; 1 is no guidance
            image_scale=1.0,  # cfg_img_scale
            interval=(0.4, 1.0),  # cfg_interval: timesteps with guidance
            renorm="global",  # cfg_renorm_type
            renorm_min=0.0,  # cfg_renorm_min
            temperature=0.3,  # of texts; 0 is greedy
            decision_temperature=placeholder(float),  # of tokens that decide what follows; None: temperature
            refine_threshold=placeholder(float),  # correct if its probability is at least this; None: sample
            answer_tokens=128,  # most tokens of an answer to a question
            max_turns=8,  # a trajectory is cut after so many
            max_steps=0,  # most steps of a trajectory, corrections not counted; 0 is no limit
            inspections=True,  # False: neither inspections nor corrections
            max_flow_steps=0,  # most Euler steps of a trajectory, all images together; 0 is no limit
            seed=0,
        )
    )
    config.eval = ConfigDict(
        dict(
            every=0,  # steps between evaluations during training; 0 for none
            losses_every=500,  # steps between measurements of the validation losses; 0 for none
            loss_batches=8,
            tasks=("scenes",),  # benchmarks of process_gen.evaluate
            task_args=(),  # their options, as "scenes.split=train"
            prompts=(),  # further prompts to draw at each evaluation and at the end, a strip of images each
            per_group=8,  # prompts of each group of a task, during training
            final_per_group=40,  # and at the end; 0 for no evaluation there
            batch_size=80,
        )
    )
    return config


def _debug(config: ConfigDict) -> None:
    """Two layers, a few steps: about twenty seconds, most of it compilation."""
    config.model.size = "debug"
    config.data.examples = 64
    config.train.update(dict(batch_size=2, steps=4, log_every=1, checkpoint_every=2))
    config.optimizer.warmup_steps = 2
    config.sampling.flow_steps = 2
    config.sampling.max_turns = 2
    config.eval.update(dict(losses_every=0, final_per_group=1, batch_size=8))


def _quick(config: ConfigDict) -> None:
    """Minutes of training on two cores: 0.45 to 0.6 s a step where they multiply at 160 to 330 GFLOP/s."""
    config.data.examples = 8_000  # a run reads fewer
    config.layout.copies = 3
    # So short a run has to learn to copy what is drawn: with as much noise as `full`, shapes change.
    config.flow.context_noise_share = 0.1
    # It raises the score from 0.57 to 0.68 (process_gen/losses/README.md).
    for row in ("sketch_flow", "refine_flow"):
        weight = config.losses[row].weight / 0.62  # the same on average: the mean of t^2 is 0.62
        config.losses[row].update(dict(timesteps="clean", weight=weight))
    # Too short to learn more than plans and drafts: no plan has an error that would have to be found.
    config.data.update(dict(wrong=0.25, misplan=0.0, slip=0.03, detour=0.1))
    config.optimizer.update(dict(ema=0.995, final_share=0.3))  # too short a run to anneal for long
    config.train.update(dict(steps=600, checkpoint_every=300))
    config.eval.update(dict(losses_every=0, final_per_group=20, batch_size=90))  # two batches


def _full(config: ConfigDict) -> None:
    """An hour and a half on two cores. The shipped weights are of an earlier version of it."""
    config.data.update(dict(examples=60_000, slip=0.03, detour=0.1))
    # Shorter prompts are learned in a fraction of the time.
    short = dict(single_object=1, two_object=2, counting=2, colors=1, position=3, color_attr=2)
    config.data.mixture = short | dict(three_objects=6, four_objects=6, five_objects=6)
    config.train.update(dict(steps=5_000, checkpoint_every=500))
    config.eval.final_per_group = 40


def _hung(config: ConfigDict) -> None:
    """Texts place things relative to others, never by cell: a quarter of an hour on two cores.

    It starts from the shipped weights, which can draw: the score over the eight groups is 0.91 [0.85, 0.94],
    and 0.54 [0.47, 0.61] from random weights (20 prompts a group). Few of the 36 image tokens show a thing,
    so the flow losses have larger weights.
    """
    config.train.init = "scenes"
    config.layout.update(dict(image_size=(48, 48), prompt=52, before=64, after=20, copies=3))
    config.data.update(dict(level="hung", examples=10_000, wrong=0.25, misplan=0.1, slip=0.03, detour=0.1))
    config.sampling.max_turns = 12  # six things, a correction of each
    config.losses.sketch_flow.weight = 25.0
    config.losses.refine_flow.weight = 8.0
    config.optimizer.update(dict(ema=0.995, final_share=0.1))
    config.train.update(dict(steps=800, checkpoint_every=400))
    config.eval.update(dict(losses_every=0, final_per_group=20))


def _critiques(config: ConfigDict) -> None:
    """Continues a run of `hung` with critiques of its own drafts (commands: process_gen/recipe/README.md)."""
    _hung(config)
    config.data.sources = dict(
        teacher=dict(weight=0.6),
        critiques=dict(source="folder", path="runs/critiques/alignment", weight=0.4),
    )
    config.train.update(dict(init="runs/hung", steps=350))
    config.optimizer.update(dict(muon_learning_rate=1.5e-2, learning_rate=1.5e-3))


def _no_inspection(config: ConfigDict) -> None:
    """Steps without inspections, and without the errors that inspections would find."""
    config.layout.update(dict(after=0, corrections=0))
    config.data.update(dict(wrong=0.0, misplan=0.0))
    config.sampling.inspections = False


def _one_image(config: ConfigDict, mode: str) -> None:
    """Trajectories of one turn: a plan and an image, or the image alone; no inspections or corrections."""
    config.data.mode = mode
    config.layout.update(dict(trajectories=config.layout.turns, after=0, corrections=0))
    if mode == "single_pass":
        config.layout.before = 0
