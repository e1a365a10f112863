"""Caches the tensors at the frost line on disk: when that pays, how they are stored, and for how long."""
