"""Whole jobs as functions: opening a task, and fine-tuning on it."""
