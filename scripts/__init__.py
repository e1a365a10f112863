"""Frostline's programs: ``python -m scripts.NAME`` in a checkout, ``frostline NAME`` once installed."""
