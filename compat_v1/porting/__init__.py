"""Ports checkpoints of TF1 programs into models and back, with proof of parity."""
