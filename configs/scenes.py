"""The scenes world: coloured shapes on a canvas, learned from scratch.

    python -m process_gen.train --config=configs/scenes.py:quick --workdir=runs/quick

`:debug` seconds, for tests; `:quick` the README's main job; `:full` the shipped
checkpoint; `:hung` for the level whose texts name no cell. Arms with as much
training compute as the one they are named after: `:hung_plan_only` draws one image
with a plan, `:hung_single_pass` without, `:hung_no_inspection` draws in steps that
nobody inspects; likewise `quick_` and `full_`. `:hung_critiques` goes on from a run
of `:hung`, with exact critiques of what it drew. Every leaf can be overridden:
`--config.train.steps=100`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from process_gen.checkpoints.shipped import shipped_weights

ARMS = ("plan_only", "single_pass", "no_inspection")
GFLOP = {  # of a train step: the process, then each of the arms (tests/benchmarks/step_flops.py)
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
        (_no_inspection if arm == "no_inspection" else _one_image)(config, arm)
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
            attention="dense",  # or flash, without scores in memory: process_gen/models/README.md
            remat="none",  # what the backward pass keeps: process_gen/models/remat.py
            scan_unroll=4,  # layers per iteration of the scan over layers
            autoencoder="patches",  # latents are pixels; or flux, with its sizes in `flux`
            prediction="clean",  # what the latent head regresses; or velocity
            logit_chunk=0,
            # Adapters of a rank above 0; all else is frozen then: configs/README.md.
            lora=dict(rank=0, alpha=16.0, patterns=("backbone/layers/*/[qkvo]_proj/kernel",)),
        )
    )
    config.layout = ConfigDict(
        dict(
            image_size=(32, 32),
            vit_grid=(0, 0),  # (4, 4): images in context stand there as 4 x 4 ViT tokens as well
            prompt=36,
            prompt_image=False,  # True: a prompt may show an input image, and an `instruction` after it
            instruction=0,
            before=40,  # a plan or a refine instruction
            after=18,  # an inspection
            turns=8,
            trajectories=4,
            copies=4,  # noised copies of an image, each a flow target
            context="step",
            corrections=1,  # of one draft, at most
        )
    )
    config.data = ConfigDict(
        dict(
            source="scenes",  # or with `path`: folder, parquet, genref, .. (process_gen/data/README.md)
            path="",
            sources=dict(),  # a mixture: name -> keys of its own beside these, with path, weight and stages
            validation=0.01,  # share that is held out of sources without a validation split of their own
            fields=dict(),  # of a turn: dict(kept="mask") of scenes, of your own sets what they have
            tokenizer="scenes",  # or the folder of a published Qwen2 tokenizer
            buckets=(),  # more image shapes than layout.image_size, for folders of pictures
            latents="",  # a folder of latents encoded ahead, for autoencoders with weights
            level="default",
            mode="process",  # plan_only and single_pass are the baselines
            examples=20_000,
            data_dir="data",
            seed=0,
            wrong=0.15,  # share of drafts with a planted error that is inspected and refined
            misplan=0.15,  # share of plans with one: the draft shows it, the words are not learned
            slip=0.05,  # share of drafts with an error that goes unnoticed until the next step
            detour=0.2,  # share of trajectories with changes, swaps and removals
            threads=0,  # that read and decode ahead on each host; 0 for the one that packs
            on_error="fail",  # or "skip": what a bad record does
            on_long="split",  # what is longer than a row, at a step; or "drop", as context="full" always does
        )
    )
    config.flow = ConfigDict(
        dict(
            time_mean=1.5,  # towards noise (t near 1), where the text decides what an image becomes
            time_std=1.2,
            time_shift=1.0,
            drop_text=0.1,
            drop_images=0.05,
            drop_latents=0.0,
            drop_vit=0.0,
            context_noise=0.4,
            context_noise_share=0.7,
            sample_latents=False,  # of an autoencoder with a distribution, which patches are not
        )
    )
    config.losses = ConfigDict(
        dict(
            plan_text=dict(loss="text_cross_entropy", stage="plan", weight=0.25),
            plan_decision=dict(loss="decision_cross_entropy", stage="plan", weight=0.02),
            # Flow errors are small numbers: at equal weights the text experts learn words from the texts
            # and hardly hear from the images which words to carry to which cell.
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
            muon_learning_rate=4e-2,  # of the backbone's matrices; all else takes learning_rate
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
            freeze=(),  # names that stay as they are, as ("vit/*", "connector/*"): configs/README.md
            groups=dict(),  # rates of parts: dict(gen=dict(pattern="backbone/*gen*", rate=0.1))
        )
    )
    config.train = ConfigDict(
        dict(
            init="",  # weights to start from: a run, a .safetensors file, a published folder; "": random ones
            batch_size=4,
            steps=2_000,
            accumulate=1,  # gradient accumulation steps
            unroll="layers",  # or scan: the loop over turns outside, that over layers inside
            max_nonfinite=1,  # steps in a row without a finite gradient, each left out, that end the run
            # A share of the images in context that the model has drawn itself: configs/README.md.
            own=dict(share=0.0, every=8, keep=4096),
            offload="none",  # or optimizer, optimizer+ema: what waits in host memory between steps
            log_every=50,
            checkpoint_every=500,
            local_every=0,  # steps between saves to local_dir, a disk of each host's own; 0 for none
            local_dir="",
            keep=2,  # checkpoints that stay, the newest ones (max_to_keep)
            keep_every=0,  # steps that are a multiple of it stay for good
            keep_best=0,  # how many of the steps with the best scores stay besides
            sheet_every=500,
            profile=False,
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
            temperature=0.3,
            decision_temperature=placeholder(float),  # of what follows what; None is that of the texts
            refine_threshold=placeholder(float),  # probability from which on one corrects; None draws it
            answer_tokens=128,
            max_turns=8,
            max_steps=0,  # of a trajectory, corrections not counted; 0 is no limit
            inspections=True,  # False: neither texts after images nor corrections
            max_flow_steps=0,  # of a trajectory, all images together; 0 is no limit
            seed=0,
        )
    )
    config.eval = ConfigDict(
        dict(
            every=0,  # steps between evaluations on the way; 0 for none
            losses_every=500,  # steps between validation losses, on trajectories that are not trained on
            loss_batches=8,
            tasks=("scenes",),  # benchmarks of process_gen.evaluate
            task_args=(),  # their options, as "scenes.split=train"
            prompts=(),  # drawn at the same steps, a strip of pictures for each
            per_group=8,  # prompts of each group of a task, on the way
            final_per_group=40,  # and at the end; 0 for no evaluation there
            batch_size=80,
        )
    )
    return config


def _debug(config: ConfigDict) -> None:
    """Two layers, a few steps: about twenty seconds, most of it compilation."""
    config.model.size = "debug"
    config.data.examples = 64
    config.train.update(dict(batch_size=2, steps=4, log_every=1, checkpoint_every=2, sheet_every=0))
    config.optimizer.warmup_steps = 2
    config.sampling.flow_steps = 2
    config.sampling.max_turns = 2
    config.eval.update(dict(losses_every=0, final_per_group=1, batch_size=8))


def _quick(config: ConfigDict) -> None:
    """Minutes of training on two cores: 0.45 to 0.6 s a step where they multiply at 160 to 330 GFLOP/s."""
    config.data.examples = 8_000  # a run reads fewer
    config.layout.copies = 3
    # What stands is to be copied first: under as much noise as `full` has, things change their shapes.
    config.flow.context_noise_share = 0.1
    # Too short to learn more than the plans and the drafts: none of them is there to be found out.
    config.data.update(dict(wrong=0.25, misplan=0.0, slip=0.03, detour=0.1))
    config.optimizer.update(dict(ema=0.995, final_share=0.3))  # too short a run to anneal for long
    config.train.update(dict(steps=600, checkpoint_every=300, sheet_every=0))
    config.eval.update(dict(losses_every=0, final_per_group=20, batch_size=90))  # two batches


def _full(config: ConfigDict) -> None:
    """About an hour on two cores: the shipped checkpoint."""
    config.data.update(dict(examples=60_000, slip=0.03, detour=0.1))
    config.train.update(dict(steps=5_000, checkpoint_every=500, sheet_every=0))
    config.eval.final_per_group = 40


def _hung(config: ConfigDict) -> None:
    """Each thing hangs on another, and only the canvas says where: a quarter of an hour on two cores.

    It starts from the weights that ship, which can draw: 0.91 [0.85, 0.94] of the eight groups, from random
    weights 0.54 [0.47, 0.61] (20 prompts a group). Few of 36 image tokens show a thing, so flow counts more.
    """
    config.train.init = shipped_weights()
    config.layout.update(dict(image_size=(48, 48), prompt=52, before=64, after=20, copies=3))
    config.data.update(dict(level="hung", examples=10_000, wrong=0.25, misplan=0.1, slip=0.03, detour=0.1))
    config.sampling.max_turns = 12  # six things, a correction of each
    config.losses.sketch_flow.weight = 25.0
    config.losses.refine_flow.weight = 8.0
    config.optimizer.update(dict(ema=0.995, final_share=0.1))
    config.train.update(dict(steps=800, checkpoint_every=400, sheet_every=0))
    config.eval.update(dict(losses_every=0, final_per_group=20))


def _critiques(config: ConfigDict) -> None:
    """On from a run of `hung`, with critiques of its own drafts: process_gen/recipe/README.md makes them."""
    _hung(config)
    config.data.sources = dict(
        teacher=dict(weight=0.6),
        critiques=dict(source="folder", path="runs/critiques/alignment", weight=0.4),
    )
    config.train.update(dict(init="runs/hung", steps=350))
    config.optimizer.update(dict(muon_learning_rate=1.5e-2, learning_rate=1.5e-3))


def _no_inspection(config: ConfigDict, arm: str) -> None:
    """Steps without texts after their images, and without what such texts would find fault with."""
    del arm
    config.layout.update(dict(after=0, corrections=0))
    config.data.update(dict(wrong=0.0, misplan=0.0))
    config.sampling.inspections = False


def _one_image(config: ConfigDict, mode: str) -> None:
    """A trajectory is one turn, a plan and an image or the image alone: nothing is inspected or refined."""
    config.data.mode = mode
    config.layout.update(dict(trajectories=config.layout.turns, after=0, corrections=0))
    if mode == "single_pass":
        config.layout.before = 0
