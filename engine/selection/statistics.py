"""Which variables are moving statistics, judged by their names. Selections, TF1 graphs and audits all ask here.

Keras and the project's own modules declare their statistics. A TF1 graph has only names: every kind of BatchNorm calls
its moments ``moving_mean``, ``running_var`` and the like, and TensorFlow's bias-corrected averages keep ``biased`` and
``local_step`` below them.
"""

from __future__ import annotations

import re

_STATISTIC = re.compile(
    r"(?:(?P<layer>.*)/)?(moving|running)_(mean|var|variance|std|stddev|avg|average)(/(biased|local_step))?"
)


def is_statistic(name: str) -> bool:
    """Whether a variable has the name of a moving statistic.

    Example:
        >>> is_statistic("block/bn/running_var"), is_statistic("block/bn/gamma")
        (True, False)
    """
    return _STATISTIC.fullmatch(name) is not None


def statistic_layer(name: str) -> str:
    """Returns the scope of the layer that a statistic belongs to; raises ValueError for a name of anything else.

    Example:
        >>> statistic_layer("block/bn/moving_mean/biased")
        'block/bn'
    """
    match = _STATISTIC.fullmatch(name)
    if match is None:
        raise ValueError(f"name={name!r} is not the name of a statistic")
    return match["layer"] or ""
