"""Forecasts the memory that a step needs, and plans steps that fit a budget."""
