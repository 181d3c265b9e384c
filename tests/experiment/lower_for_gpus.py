"""Lowers the train step of a config for two GPUs that are not there."""

import sys

import jax.numpy as jnp

from process_gen import compile as compiling
from process_gen.capacity import topology
from process_gen.experiment.cli import load_config

name = topology.parse("h100:2")
topology.prepare(name)
where = topology.get(name)
config = load_config(sys.argv[1])
program, _ = compiling.train_program(config, where)
text = program.step.lower(*program.abstract).as_text()
fused = config.model.attention == "flash" and jnp.dtype(config.model.dtype) == jnp.bfloat16
assert ("__cudnn$fmha" in text) == fused, f"cuDNN's attention is {'not ' * fused}in it"
print(sys.argv[1], "ok")
