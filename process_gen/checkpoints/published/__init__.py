"""Published weights: BAGEL, Qwen2, SigLIP 2 and the FLUX autoencoder, in and out, by rule tables."""

from process_gen.checkpoints.published.bagel import export_bagel, import_bagel
from process_gen.checkpoints.published.folder import Published, read_published

__all__ = ["Published", "export_bagel", "import_bagel", "read_published"]
