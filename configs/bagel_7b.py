"""BAGEL-7B-MoT, fine-tuned on trajectories as the paper has it (arXiv 2604.04746).

    python -m process_gen.convert --source=BAGEL-7B-MoT --target=runs/bagel --mesh=fsdp=8
    python -m process_gen.train --config=configs/bagel_7b.py:paper --workdir=runs/7b --config.data.path=DATA

`:paper` is the recipe: 10,000 steps at a learning rate of 2e-5 with cosine decay, eight rows of up to 33,000
tokens at 512 x 512 pixels, for eight devices of 80 GB; it has not been run yet, so there is no time or score
to give. `:paper_1024` has images of 1,024 x 1,024 pixels, `:edit` prompts with an image and an instruction.
`:debug` is a model of toy sizes on the scenes world, for tests and to rehearse the way there and back:
`--config.train.init=FOLDER` starts it from published weights of those sizes.

The moving average and the ViT size differ from the base model's; Muon is an option. Below are their costs
with eight full rows (forward and backward, nothing recomputed; a test recounts them), and the flags for the
base model's own values and for Muon:

    average    A copy in float32, 54.3 GiB over all devices. Its decay is 0.9999, or (1 + step) / (10 + step)
               where that is less: it spans the last tenth of a run. The base model's is constant: after
               10,000 steps 37% of it is still what the run began with.
                   --config.optimizer.ema=0.9999 --config.optimizer.ema_warmup=False
    optimizer  AdamW, as the base model has it: two moments, 108.6 GiB. `optimizer.name=muon` keeps one for
               kernels of stacked layers, the ViT's too: 50.1 GiB less, for 4.1 GFLOP a token more (a token of
               a row takes 43.4). At its rate of 2.4e-4 updates are about as large as AdamW's at 2e-5 (a root
               mean square of 0.2 times that rate; arXiv 2502.16982).
                   --config.optimizer.name=muon
    ViT        308 pixels a side: 484 tokens an image, 129 TFLOP a turn (106 without a ViT). The base model
               rounds 512 pixels to 518: 1,369 tokens, 173 TFLOP. Memory depends on the tokens of a row: with
               8 turns they are about as many as here.
                   --config.layout.vit_grid='(37, 37)' --config.layout.turns=8 --config.sampling.max_turns=8
               Its largest side is 980, for images as large (`:paper_1024`): 4,900 tokens, 711 TFLOP a turn
               (440 with 308). A row of three turns has 40,766 tokens.
                   --config.layout.vit_grid='(70, 70)' --config.layout.turns=3 --config.sampling.max_turns=3
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(variant: str = "paper") -> ConfigDict:
    """Returns the locked config of a variant: paper, paper_1024, edit or debug."""
    variants = {"paper": lambda config: None, "paper_1024": _paper_1024, "edit": _edit, "debug": _debug}
    if variant not in variants:
        raise ValueError(f"configs/bagel_7b.py has no variant {variant!r}; it has {', '.join(variants)}")
    config = _base()
    variants[variant](config)
    return config.lock()


def _base() -> ConfigDict:
    config = ConfigDict()
    config.name = "bagel_7b"
    config.seed = 0
    config.model = ConfigDict(
        dict(
            size="bagel_7b",
            dtype="bfloat16",
            attention="flash",  # keeps no attention scores in memory; or dense: process_gen/models/README.md
            remat="full",  # activations kept for the backward pass: process_gen/models/remat.py
            scan_unroll=1,  # layers per iteration of the scan over layers
            autoencoder="flux",  # or patches: latents are pixels
            prediction="velocity",  # what the latent head predicts; or clean: the image without noise
            logit_chunk=8448,  # losses compute logits in chunks: 18 here, each a multiple of 128 entries
            # LoRA adapters: a rank above 0 freezes all other parameters (configs/README.md).
            lora=dict(rank=0, alpha=16.0, patterns=("backbone/layers/*/[qkvo]_proj/kernel",)),
        )
    )
    # A row has 32,718 tokens: 11 turns of 2,858 (of which 2,052 are a noised and a clean image, 486 its
    # ViT tokens, 320 texts), and five prompts of 256.
    config.layout = ConfigDict(
        dict(
            image_size=(512, 512),
            vit_grid=(22, 22),  # ViT tokens of an image in context, each a patch of 14 pixels
            prompt=256,  # tokens of its text
            prompt_image=False,  # True: a prompt may show an input image, and an `instruction` after it
            instruction=0,  # tokens of that instruction; 0: none
            before=192,  # tokens of a plan or a refine instruction
            after=128,  # tokens of an inspection
            turns=11,  # turn slots of a row
            trajectories=5,  # of a row, at most
            copies=1,  # noised copies of an image, each a flow target
            context="full",  # which earlier turns are seen; or step, last (trajectory/visibility.py)
            corrections=1,  # refine turns of a step, at most
        )
    )
    config.data = ConfigDict(
        dict(
            source="folder",
            path="data/trajectories",
            sources=dict(),  # a mixture: name -> keys that differ from these, and path, weight and stages
            validation=0.01,  # share that is held out of sources without a validation split of their own
            fields=dict(),  # custom fields of a turn for your losses: dict(mask="mask", quality="number")
            tokenizer="runs/bagel/tokenizer",  # where `convert` puts the published one
            mode="process",
            buckets=(),  # image sizes besides layout.image_size, as ((448, 576), (576, 448))
            latents="",  # a folder: `prepare` encodes every image once and puts the latents there
            threads=16,  # threads per host that read and decode ahead; 0: the packing thread does it
            on_error="skip",  # bad records; or "fail"
            on_long="split",  # longer than a row: split at a step; or "drop", as context="full" always does
        )
    )
    config.flow = ConfigDict(
        dict(
            time_mean=0.0,  # timesteps are logit-normal; a mean above 0 gives more noise
            time_std=1.0,
            time_shift=1.0,
            drop_text=0.1,  # probability of dropping the newest text before an image
            drop_images=0.1,  # of dropping all images of a trajectory
            context_noise=0.0,  # largest standard deviation of the noise on images in context
            context_noise_share=0.0,  # share of those images that get any
            drop_latents=0.1,  # probability of dropping the latents of an image in context
            drop_vit=0.3,  # of dropping its ViT tokens
            sample_latents=True,  # draws latents from the autoencoder's distribution; False: its means
        )
    )
    text, image = dict(weight=0.25, pool="text"), dict(weight=1.0, pool="image")
    config.losses = ConfigDict(
        dict(
            plan_text=dict(loss="text_cross_entropy", stage="plan", **text),
            plan_decision=dict(loss="decision_cross_entropy", stage="plan", **text),
            sketch_flow=dict(loss="flow_mse", stage="sketch", **image),
            sketch_decision=dict(loss="decision_cross_entropy", stage="sketch", **text),
            inspect_text=dict(loss="text_cross_entropy", stage="inspect", **text),
            inspect_decision=dict(loss="decision_cross_entropy", stage="inspect", **text),
            refine_text=dict(loss="text_cross_entropy", stage="refine", **text),
            refine_flow=dict(loss="flow_mse", stage="refine", **image),
            refine_decision=dict(loss="decision_cross_entropy", stage="refine", **text),
        )
    )
    config.optimizer = ConfigDict(
        dict(
            name="adamw",
            muon_learning_rate=2.4e-4,
            learning_rate=2e-5,
            warmup_steps=200,
            final_share=0.0,  # end of the cosine, as a share of the learning rate (min_lr / lr)
            b1=0.9,
            b2=0.95,
            eps=1e-15,
            weight_decay=0.0,
            clip=1.0,  # global gradient norm (max_grad_norm)
            moment_dtype="float32",  # or bfloat16: of the first moment
            ema=0.9999,  # decay of the moving average of the weights
            ema_warmup=True,  # False: constant from the first step on
            freeze=(),  # patterns of frozen parameters, as ("vit/*", "connector/*"): configs/README.md
            groups=dict(),  # factors on the rate: dict(gen=dict(pattern="backbone/*gen*", rate=0.1))
        )
    )
    config.train = ConfigDict(
        dict(
            init="runs/bagel",  # a run, a .safetensors file, a published folder; "" for random weights
            batch_size=8,
            steps=10_000,
            accumulate=1,  # gradient accumulation steps
            unroll="layers",  # the outer loop; or scan: an outer loop over turns, an inner one over layers
            max_nonfinite=1,  # steps in a row without a finite gradient that end the run; each is skipped
            # Replaces a share of the images in context by images of the model's own: configs/README.md.
            own=dict(share=0.0, every=8, keep=512),
            offload="none",  # or optimizer, optimizer+ema: what is kept in host memory between steps
            log_every=10,
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
        dict(data=1, fsdp=-1, tensor=1, context=1, dcn=dict(data=-1, fsdp=1, tensor=1, context=1))
    )
    config.sampling = ConfigDict(
        dict(
            flow_steps=49,  # Euler steps of one image; num_timesteps=50 in BAGEL counts points
            time_shift=3.0,  # timestep_shift in BAGEL
            text_scale=4.0,  # cfg_text_scale
            image_scale=1.5,  # cfg_img_scale
            interval=(0.4, 1.0),  # cfg_interval: timesteps with guidance
            renorm="global",  # cfg_renorm_type
            renorm_min=0.0,  # cfg_renorm_min
            temperature=0.3,  # of texts; 0 is greedy
            decision_temperature=placeholder(float),  # of tokens that decide what follows; None: temperature
            refine_threshold=placeholder(float),  # correct if its probability is at least this; None: sample
            answer_tokens=512,  # most tokens of an answer to a question
            max_turns=10,  # a trajectory is cut after so many
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
            tasks=(),  # benchmarks of process_gen.evaluate
            task_args=(),  # their options, as "scenes.split=train"
            prompts=(),  # further prompts to draw at each evaluation and at the end, a strip of images each
            per_group=8,  # prompts of each group of a task, during training
            final_per_group=0,  # and at the end; 0 for no evaluation there
            batch_size=8,
        )
    )
    return config


def _paper_1024(config: ConfigDict) -> None:
    """Rows of 36,520 tokens: 4 turns of 9,002 (8,196 are a noised and a clean image), and two prompts.

    Published rows end at 36,864 tokens.
    """
    config.layout.update(dict(image_size=(1024, 1024), turns=4, trajectories=2))
    config.sampling.max_turns = 4


def _edit(config: ConfigDict) -> None:
    """Rows of 32,344 tokens: 8 turns, and five prompts of 1,896 (a text, an image twice, an instruction)."""
    config.layout.update(dict(prompt_image=True, instruction=128, turns=8))
    config.sampling.max_turns = 8


def _debug(config: ConfigDict) -> None:
    """The sizes of a tiny published checkpoint, on the scenes world: a minute, most of it compilation."""
    config.model = ConfigDict(
        dict(
            size="bagel_7b",
            vocab_size=320,
            width=64,
            layers=3,
            mlp=112,
            heads=4,
            kv_heads=2,
            head_dim=16,
            max_latent_side=8,
            dtype="float32",
            attention="dense",
            remat="none",
            scan_unroll=1,
            autoencoder="flux",
            prediction="velocity",
            logit_chunk=0,
            vit=dict(width=48, layers=2, mlp=80, heads=4, patch=14, max_side=6),
            flux=dict(ch=32, ch_mult=(1, 1, 1, 1), res_blocks=1, z_channels=4),
            lora=config.model.lora,
        )
    )
    config.layout.update(
        dict(
            image_size=(32, 32),
            vit_grid=(2, 2),
            prompt=36,
            prompt_image=True,
            instruction=36,
            before=40,
            after=18,
            turns=6,
            trajectories=3,
        )
    )
    scenes = dict(level="default", examples=64, data_dir="data", seed=0)
    config.data.update(dict(source="scenes", tokenizer="scenes", **scenes))
    # Of the teacher of scenes: configs/scenes.py says what each is.
    config.data.update(dict(wrong=0.25, misplan=0.0, slip=0.05, detour=0.2, mixture=dict()))
    config.optimizer.update(dict(learning_rate=2e-3, muon_learning_rate=2.4e-2, warmup_steps=2, ema=0.99))
    config.train.update(dict(init="", batch_size=2, steps=4, log_every=1, checkpoint_every=2))
    config.sampling.update(dict(flow_steps=2, max_turns=2, answer_tokens=8))
    config.eval.update(dict(tasks=("scenes",), losses_every=0, final_per_group=1, batch_size=8))
