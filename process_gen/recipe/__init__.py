"""The paper's training data and its recipe: three subsets, made exactly for scenes or by services."""
