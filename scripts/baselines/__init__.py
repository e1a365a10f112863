"""What the benchmarks compare with: Keras, PyTorch and hand-written loops."""
