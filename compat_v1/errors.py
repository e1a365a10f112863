"""Errors that several modules of compat_v1 raise."""

from engine.errors import GraphError as GraphError
from engine.errors import InputError


class SessionError(InputError):
    """A batch, an optimizer or a checkpoint that the session loop cannot use."""
