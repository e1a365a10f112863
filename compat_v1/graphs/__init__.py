"""Reads old graphs as data, checks that they are safe, extracts the part that is needed, and runs it."""
