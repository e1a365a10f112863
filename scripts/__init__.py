"""Frostline's programs: ``python -m scripts.NAME`` in a checkout, ``frostline NAME`` once installed."""

import compat_v1 as compat_v1  # adds its models to the engine's
