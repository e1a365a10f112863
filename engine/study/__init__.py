"""Freezing strategies side by side: what each costs and buys."""
