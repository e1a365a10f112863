"""Keras models: named, saved and the user's own, with their heads and weights."""
