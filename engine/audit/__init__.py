"""Audits graphs, steps and runs: which op may write which variable, and why."""
