"""The base class of all errors that a user's input can cause, and the check of a number's range."""

from __future__ import annotations

import math


class InputError(ValueError):
    """An argument, a flag or a file is wrong.

    Every error that a user's input causes is a subclass, so a program can catch this one class, print the message and
    exit with code 2. The message names the argument, its value, the rule and the nearest valid value.

    Example:
        >>> from engine import InputError, parse_filter
        >>> try:
        ...     parse_filter("@nrom")
        ... except InputError as error:
        ...     print(str(error).split(";")[0])
        item 1 `@nrom`: `@nrom` is not a group
    """


class FileError(InputError):
    """A file is missing, damaged or of the wrong kind. The message names it."""


class GraphError(InputError):
    """A graph from a file lacks something or its values do not fit. The message names the file and the tensor."""


def check_range(
    name: str,
    value: float | None,
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Raises InputError, which names the argument or flag, unless a value is finite and within its limits.

    It may equal ``least`` and ``most``, but not ``above`` and ``below``. None, for "not given", always passes.

    Example:
        >>> check_range("keep", 0, 1)
        Traceback (most recent call last):
        engine.errors.InputError: keep=0: expected a number of at least 1
        >>> check_range("ema", 1.0, above=0, below=1)
        Traceback (most recent call last):
        engine.errors.InputError: ema=1.0: expected a number above 0 and below 1
    """
    if value is None:
        return
    inside = (least is None or value >= least) and (most is None or value <= most)
    strictly = (above is None or value > above) and (below is None or value < below)
    if math.isfinite(value) and inside and strictly:
        return
    if least is not None and most is not None:
        raise InputError(f"{name}={value}: expected a number from {least:.15g} to {most:.15g}")
    limits = [(f"of at least {least}", least), (f"above {above}", above), (f"at most {most}", most)]
    words = [text for text, limit in (*limits, (f"below {below}", below)) if limit is not None]
    number = "a finite number" if math.isinf(value) else "a number"
    raise InputError(f"{name}={value}: expected {number} {' and '.join(words)}".rstrip())
