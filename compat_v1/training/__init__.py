"""Training as TF1 does it: graphs, sessions and the three ways to freeze."""
