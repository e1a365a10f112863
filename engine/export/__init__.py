"""Exports of a trained model, each checked against the model, and updates that ship only what changed."""
