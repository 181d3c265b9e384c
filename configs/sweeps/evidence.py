r"""The process against its baselines on the level whose texts name no cell, three seeds each.

12 trainings, a quarter of an hour each on two cores.

    export JAX_COMPILATION_CACHE_DIR=sweeps/cache    # cells share programs: each is compiled once
    python -m process_gen.sweep --config=configs/sweeps/evidence.py --workdir=sweeps/evidence
    python -m process_gen.evaluate --output_dir=sweeps/evidence/report --pool=config.seed \
        --compare=sweeps/evidence/results.jsonl

All arms start from the shipped weights and train with the same FLOP. Two baselines draw one image, with or
without a plan; one draws in steps without inspections.
"""

COMMAND = ("process_gen.train", "--config.eval.final_per_group=40")


def get_hyper(hyper):
    """The settings of all cells."""
    arms = [f"configs/scenes.py:hung{arm}" for arm in ("", "_plan_only", "_single_pass", "_no_inspection")]
    return hyper.product([hyper.sweep("config", arms), hyper.sweep("config.seed", [0, 1, 2])])
