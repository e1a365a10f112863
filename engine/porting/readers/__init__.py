"""Reads weights files as named tensors; each format is read and checked by one module."""
