"""What the benchmarks compare the engine with: Keras, PyTorch, TF1 and hand-written loops."""
