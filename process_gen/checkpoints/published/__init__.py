"""Published weights: BAGEL, Qwen2, SigLIP 2 and the FLUX autoencoder, in and out, by rule tables."""

from process_gen.checkpoints.published.bagel import Published, export_bagel, import_bagel, read_published

__all__ = ["Published", "export_bagel", "import_bagel", "read_published"]
