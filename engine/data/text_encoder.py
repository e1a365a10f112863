"""Turns texts into what a network takes, as the source of a run turned its own."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from engine.data.part import ArraySpec, DataError
from engine.data.text_name import TextName
from engine.data.tokens import Tokenizer, TokenizerFiles
from engine.text import cut


@dataclass(frozen=True, kw_only=True)
class TextFacts:
    """How a source read its texts, for those who read others like them.

    Attributes:
        columns: the names of the columns of text; () where these have no names.
        count: the texts of an example: 1, or 2 for a pair.
        tokenizer: the digest of the tokenizer (``Tokenizer.digest``).
    """

    columns: tuple[str, ...]
    count: int
    tokenizer: str

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> TextFacts:
        """The facts from JSON values; raises ValueError, LookupError or TypeError if they are anything else."""
        columns, count, tokenizer = tuple(given["columns"]), given["count"], given["tokenizer"]
        if not all(isinstance(text, str) for text in (*columns, tokenizer)) or count not in (1, 2):
            raise TypeError("texts must have names of columns, 1 or 2 texts for an example, and a digest")
        return cls(columns=columns, count=count, tokenizer=tokenizer)

    def check_tokenizer(self, digest: str, files: TokenizerFiles) -> None:
        """Raises DataError unless a tokenizer of this digest makes the same tokens of a text as the source's did."""
        if digest != self.tokenizer:
            raise DataError(
                f"{files.folder}: the tokenizer is not the one that the run was trained with (its vocab.txt, or a setting such as "
                "do_lower_case, differs), so texts would become other tokens; put the run's files back"
            )


@dataclass(kw_only=True)
class TextEncoder:
    """Texts as the inputs of a network: "tokens", and "types" for pairs, where the model has token types.

    Attributes:
        files: the tokenizer, with the number of tokens for an example.
        facts: how the run read its own texts; None if that is not known.
        count: the texts of an example, where ``facts`` do not say it.
        too_long: how many texts have been cut so far.
    """

    files: TokenizerFiles
    facts: TextFacts | None = None
    count: int = 1
    too_long: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if self.facts is not None:
            self.count = self.facts.count

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; DataError if its files are missing or damaged, or have changed since the run."""
        found = Tokenizer(self.files, say=lambda line: None)
        if self.facts is not None:
            self.facts.check_tokenizer(found.digest, self.files)
        return found

    def check(self) -> None:
        """Raises DataError as ``tokenizer`` does."""
        _ = self.tokenizer

    @property
    def specs(self) -> dict[str, ArraySpec]:
        """The shape and dtype of each input of the network."""
        names = ("tokens", "types") if self.count == 2 and self.files.types else ("tokens",)
        assert self.files.max_tokens is not None
        return {name: ArraySpec((self.files.max_tokens,), np.dtype(np.int32)) for name in names}

    def __call__(self, texts: Sequence[Any]) -> dict[str, np.ndarray]:
        """The inputs of texts, each a str or, where an example has two, a pair of them; DataError for anything else."""
        if isinstance(texts, (str, bytes)):
            raise DataError(f"texts={cut(repr(texts), 60)}: expected a list of texts; [TEXT] has one")
        pieces = self.tokenizer
        rows: dict[str, list[list[int]]] = {"tokens": [], "types": []}
        for number, given in enumerate(texts):
            parts = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, (tuple, list)) else ()
            if len(parts) != self.count or not all(isinstance(part, str) for part in parts):
                what = "a text" if self.count == 1 else "a pair of texts (text, text_b)"
                raise DataError(f"texts[{number}]={cut(repr(given), 60)}: expected {what}, as the run was trained on")
            encoded = pieces.encode(*parts)
            self.too_long += encoded.whole > pieces.max_tokens
            for found, row in zip(rows.values(), pieces.fill(encoded), strict=True):
                found.append(row)
        return {name: np.array(rows[name], np.int32).reshape(-1, *spec.shape) for name, spec in self.specs.items()}


def choose_files(name: TextName, tokenizer: TokenizerFiles | None) -> TokenizerFiles | None:
    """The tokenizer that the name of a source asks for, else that of the model; None if there is none."""
    if name.tokenizer is None:
        return tokenizer
    return replace(tokenizer or TokenizerFiles(folder=name.tokenizer), folder=name.tokenizer)
