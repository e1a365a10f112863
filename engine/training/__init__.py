"""One training step, and the state that survives it."""
