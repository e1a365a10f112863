"""Trains in the style of TF1: graphs, sessions and the three ways to freeze variables."""
