"""Text decoding, flow integration, guidance, and the interleaved sampler."""

from process_gen.sampling.config import PromptError, SamplerConfig, SamplerError
from process_gen.sampling.rows import Progress
from process_gen.sampling.sampler import Sampler

__all__ = ["Progress", "PromptError", "Sampler", "SamplerConfig", "SamplerError"]
