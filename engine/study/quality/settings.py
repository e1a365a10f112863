"""The words of a quality study's settings. Imports no TensorFlow."""

from __future__ import annotations

from engine.data import corruptions
from engine.data.corruptions import Corruption

MODES = ("cost", "quality", "both")
SEARCHES = ("grid", "halving")
CORRUPT = "auto"


def parse_corrupt(text: str, *, quick: bool = False) -> tuple[Corruption, ...]:
    """Reads ``auto`` (every corruption at every strength; at strength 2 alone if ``quick``), ``none`` or what
    ``engine.data.corruptions.parse`` reads.

    Example:
        >>> len(parse_corrupt("auto")), len(parse_corrupt("auto", quick=True)), parse_corrupt("none")
        (15, 5, ())
    """
    if text.strip() == "none":
        return ()
    if text.strip() == CORRUPT:
        return tuple(Corruption(kind, 2) for kind in corruptions.KINDS) if quick else corruptions.parse("all")
    return corruptions.parse(text)
