"""Looks at what a project of TensorFlow 1 left, and says which ways lead on from it."""
