"""Finds where the frozen part of a traced step ends, and cuts the step there."""
