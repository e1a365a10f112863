"""Errors that several modules of compat_v1 raise."""

from engine.errors import InputError


class SessionError(InputError):
    """A batch, an optimizer or a checkpoint that the session loop cannot use."""


class GraphError(InputError):
    """An old graph lacks something or its values do not fit. The message names the file and the tensor."""
