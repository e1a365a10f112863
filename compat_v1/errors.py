"""What several files of this room raise."""

from engine.errors import InputError


class SessionError(InputError):
    """A batch, an optimizer or a checkpoint that the session loop cannot work with."""


class GraphError(InputError):
    """An old graph lacks what is asked of it, or its values do not fit. The message names the file and the tensor."""
