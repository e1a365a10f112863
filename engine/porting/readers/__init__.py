"""Files of weights as named tensors, each format read and checked by one module."""
