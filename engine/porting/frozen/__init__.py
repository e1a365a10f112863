"""Frozen graphs: which constants of a GraphDef are weights, what they hold, and how they are replaced."""
