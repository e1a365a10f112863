"""Which variables a model has, which of them train, and the proof that the others did not change."""
