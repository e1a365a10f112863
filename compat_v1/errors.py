"""The one exception for old graphs that cannot be used as asked."""

from engine.errors import InputError


class GraphError(InputError):
    """An old graph lacks what is asked of it, or its values do not fit. The message names the file and the tensor."""
