"""Deltas: what a run trained, kept apart from its base, to which it names the only weights that it belongs to."""
