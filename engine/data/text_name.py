"""The name of a source of texts: ``text:PATH[,OPTION=VALUE]...``."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass
from typing import Any

from engine.data.delimited import DELIMITERS
from engine.data.part import DataError
from engine.data.text_files import Columns
from engine.text import nearest

_OPTIONS = ("text", "text_b", "label", "target", "header", "quotes", "delimiter", "tokenizer")


@dataclass(frozen=True)
class TextName:
    """``text:PATH[,OPTION=VALUE]...``, parsed."""

    path: pathlib.Path
    columns: Columns
    tokenizer: pathlib.Path | None = None


def parse_text_name(spec: str) -> TextName:
    """Parses the name of a source of texts; raises DataError for an option that it does not have."""
    words = spec.partition(":")[2].split(",")
    options: dict[str, str] = {}
    while len(words) > 1 and "=" in words[-1]:
        option, _, value = (part.strip() for part in words.pop().partition("="))
        if option not in _OPTIONS:
            raise DataError(
                f"data={spec}: `{option}` is not an option of texts; expected one of {', '.join(_OPTIONS)}"
                f"{nearest(option, _OPTIONS)}"
            )
        if option in options or not value:
            raise DataError(
                f"data={spec}: `{option}` is given {'twice' if value else 'without a value'}; expected it once"
            )
        options[option] = value
    path = ",".join(words)
    if not path:
        raise DataError(f"data={spec}: expected text:PATH, a file or a folder")
    if {"label", "target"} <= options.keys():
        raise DataError(f"data={spec}: label and target are both given; label is for classes, target for numbers")
    for option in ("header", "quotes"):
        if options.get(option, "yes") not in ("yes", "no"):
            raise DataError(f"data={spec}: {option}={options[option]}: expected yes or no")
    if (delimiter := options.get("delimiter")) is not None and delimiter not in DELIMITERS:
        raise DataError(f"data={spec}: delimiter={delimiter}: expected one of {', '.join(DELIMITERS)}")
    given: dict[str, Any] = {name: options[name] for name in ("text", "text_b", "label", "target") if name in options}
    given |= {name: options[name] == "yes" for name in ("header", "quotes") if name in options}
    given |= {} if delimiter is None else {"delimiter": DELIMITERS[delimiter]}
    folder = options.get("tokenizer")
    return TextName(pathlib.Path(path), Columns(**given), None if folder is None else pathlib.Path(folder))
