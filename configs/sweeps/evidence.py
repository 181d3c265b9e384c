r"""The process, its baselines and its ablations on the level whose texts name no cell, three seeds each.

21 trainings, a quarter of an hour each on two cores.

    export JAX_COMPILATION_CACHE_DIR=sweeps/cache    # cells share programs: each is compiled once
    python -m process_gen.sweep --config=configs/sweeps/evidence.py --workdir=sweeps/evidence
    python -m process_gen.evaluate --output_dir=sweeps/evidence/report --pool=config.seed \
        --compare=sweeps/evidence/results.jsonl

All arms start from the shipped weights and train with the same FLOP. Two baselines draw one image, with or
without a plan; one draws in steps without inspections. Of the ablations, one leaves changes, swaps and
removals out of those steps; two learn from inspections without their texts, or from their texts alone.
"""

COMMAND = ("process_gen.train", "--config.eval.final_per_group=40")
ARMS = ("hung", "hung_plan_only", "hung_single_pass", "hung_no_inspection")
ABLATIONS = (  # the step counts give them the FLOP of the arms (tests/benchmarks/step_flops.py)
    {"config": "hung_no_inspection", "config.data.detour": 0.0, "config.train.steps": 805},
    {"config": "hung", "config.layout.after": 0, "config.train.steps": 825},
    {
        "config": "hung",
        "config.sampling.refine_threshold": 1.0,
        **{f"config.losses.refine_{part}.weight": 0.0 for part in ("text", "flow", "decision")},
    },
)


def get_hyper(hyper):
    """The settings of all cells."""
    cells = [
        {**cell, "config": f"configs/scenes.py:{cell['config']}"}
        for cell in (*({"config": arm} for arm in ARMS), *ABLATIONS)
    ]
    return hyper.product([cells, hyper.sweep("config.seed", [0, 1, 2])])
