"""Finds, reads and writes the checkpoint files of TensorFlow 1."""
