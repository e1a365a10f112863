"""The exception that porting raises."""

from engine.errors import InputError


class PortError(InputError):
    """Weights that cannot be read or do not fit the model, or rules that are invalid."""
