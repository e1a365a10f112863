"""HTML and SVG, built so that no name from a user can become markup: every text is escaped here, once."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from typing import Any

# control characters, lone surrogates, and characters that change the direction of the text around them
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_VOID = frozenset(["br", "hr", "link", "meta"])


class Markup(str):
    """A text that is markup already."""

    __slots__ = ()


Child = Any  # Markup, a text or number to be escaped, None, or an iterable of these


def escape(value: object) -> Markup:
    """Makes a text safe between tags and in quoted attributes; markup stays as it is."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(_UNSEEN.sub("\ufffd", str(value)), quote=True))


def join(children: Iterable[Child]) -> Markup:
    """Concatenates children."""
    return Markup("".join(_flat(children)))


def _flat(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, (str, int, float)):
            yield escape(child)
        else:
            yield from _flat(child)


def tag(name: str, /, *children: Child, **attributes: Any) -> Markup:
    """Builds an element. ``class_`` becomes class, ``_`` in names becomes ``-``; None and False omit an attribute."""
    words = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(key)
        elif value is not None and value is not False:
            text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
            words.append(f'{key}="{escape(text)}"')
    start = f"<{' '.join(words)}>"
    return Markup(start if name in _VOID else f"{start}{join(children)}</{name}>")


def data(value: Any) -> Markup:
    """JSON for a script element, written so that nothing in it can end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
