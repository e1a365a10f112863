"""``py:module:name``: objects from the user's own code, imported by their names in a flag."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from engine.errors import InputError
from engine.text import nearest

PREFIX = "py:"


def is_outside(text: str) -> bool:
    """Whether the value of a flag names something in the user's own code.

    Example:
        >>> is_outside("py:losses:smooth"), is_outside("softmax")
        (True, False)
    """
    return text.startswith(PREFIX)


def import_named(flag: str, text: str, *, name: str | None = None, what: str = "name") -> Any:
    """Imports the object that ``py:module:name`` names; the working directory is searched too.

    The module is trusted: importing it runs its code.

    Args:
        flag: the flag or argument that says it, for messages.
        text: the value of the flag, for messages, and the name itself where ``name`` is None.
        name: ``module:name``, where ``text`` has more than that, such as options.
        what: what is expected, a word for messages: "factory", "loss", ...

    Raises:
        InputError: the text is not of this form, the module raises while it is imported, or it has no such name.

    Example:
        >>> import_named("metric", "py:math:hypot")(3, 4)
        5.0
        >>> import_named("metric", "py:math:hypt")
        Traceback (most recent call last):
        engine.errors.InputError: metric='py:math:hypt': math has no 'hypt'; nearest: hypot
    """
    module_name, _, attribute = (text.removeprefix(PREFIX) if name is None else name).partition(":")
    if not module_name or not attribute:
        raise InputError(f"{flag}={text!r} is not a valid {what}; expected py:module:{what}")
    module = _import_module(flag, text, module_name)
    if not hasattr(module, attribute):
        known = [each for each in vars(module) if not each.startswith("_")]
        raise InputError(f"{flag}={text!r}: {module_name} has no {attribute!r}{nearest(attribute, known)}")
    return getattr(module, attribute)


def import_function(flag: str, text: str, *, name: str | None = None, what: str = "function") -> Any:
    """As ``import_named``; InputError also if what it finds cannot be called."""
    found = import_named(flag, text, name=name, what=what)
    if not callable(found):
        where = text.removeprefix(PREFIX) if name is None else name
        raise InputError(f"{flag}={text!r}: {where} is {describe_kind(found)}; expected a {what} that can be called")
    return found


def call_named(flag: str, text: str, function: Any, *arguments: Any, **keywords: Any) -> Any:
    """Calls a function of the user's; InputError, which names the flag, if it raises."""
    try:
        return function(*arguments, **keywords)
    except (Exception, SystemExit) as error:  # the user's code may raise anything, even SystemExit
        raise InputError(f"{flag}={text!r}: it raised {describe_error(error)}") from None


def describe_error(error: BaseException) -> str:
    """What user code raised, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def describe_kind(value: Any) -> str:
    """A value by its type, as in "a str"."""
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _import_module(flag: str, text: str, name: str) -> Any:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # an installed program does not search the working directory by default
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the user's code may raise anything, even SystemExit
        raise InputError(f"{flag}={text!r}: importing {name} raised {describe_error(error)}") from None
