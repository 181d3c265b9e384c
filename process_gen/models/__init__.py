"""The shared Mixture-of-Transformers backbone and what turns it into a trajectory model."""
