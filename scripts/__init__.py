"""Frostline's programs: ``python -m scripts.NAME``, or ``frostline-NAME`` once installed."""
