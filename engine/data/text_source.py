"""Opens ``text:PATH``: texts with a class or a number each, as token ids.

    FILE.tsv, FILE.csv, FILE.jsonl       rows (engine.data.text_files); an evaluation part is held out
    DIR/train.tsv, DIR/val.tsv, ...      a file for each part; dev, eval and validation are other names for val
    DIR/train/CLASS/*.txt, DIR/val/...   a folder for each part, with a folder for each class and a file for each text
    DIR/CLASS/*.txt                      the same without parts; an evaluation part is held out

A hash of the text decides whether an example is held out, so equal texts are never divided between the parts.
"""

from __future__ import annotations

import array
import hashlib
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from engine.data.divided import make_divided
from engine.data.part import DataError, Part, Source
from engine.data.text_encoder import TextEncoder, TextFacts, choose_files
from engine.data.text_files import Row
from engine.data.text_layout import Rows, Say, find_parts
from engine.data.text_name import parse_text_name
from engine.data.tokens import Tokenizer, TokenizerFiles
from engine.errors import FileError
from engine.reading import check_memory
from engine.text import cut, join_words, nearest, parse_number

_CHECKED = 1 << 14  # examples between two looks at the memory


def open_text(spec: str, *, tokenizer: TokenizerFiles | None = None, to_train: bool = True, say: Say = print) -> Source:
    """Opens a source of texts. If it has no evaluation part, ``eval`` is ``train``, whose ``hold_out`` says how to divide it.

    Args:
        spec: ``text:PATH[,OPTION=VALUE]...`` (docs/text.md).
        tokenizer: that of the model; the option ``tokenizer=DIR`` names one for a model that brings none.

    ``to_train`` is that of ``SourceRequest``.

    Its input is "tokens", int32 [n, T], filled up with the id of ``[PAD]``; with pairs there are "types" too, for a model
    that has token types. Raises DataError, with the place in a file.
    """
    name = parse_text_name(spec)
    files = choose_files(name, tokenizer)
    if files is None:
        raise DataError(
            f"data={spec}: the model brings no tokenizer; expected a model such as bert:DIR, or the option tokenizer=DIR, "
            "a folder with vocab.txt"
        )
    if not os.path.lexists(name.path):
        near = [entry.name for entry in name.path.parent.iterdir()] if name.path.parent.is_dir() else []
        raise DataError(f"data={spec}: there is no file or folder {name.path}{nearest(name.path.name, near)}")
    rows = find_parts(spec, name, say, to_train=to_train)
    pieces = Tokenizer(files, say=say)
    found = {part: _encode(spec, given, pieces) for part, given in rows.items()}
    _describe(found, pieces, say)
    if "val" not in found:
        _tell_shared(found["train"], say)
    source, first = _build_source(spec, found, to_train=to_train), next(iter(rows))
    facts = TextFacts(columns=rows[first].columns, count=2 if len(found[first].alone) else 1, tokenizer=pieces.digest)
    return replace(source, texts=TextEncoder(files=replace(files, max_tokens=pieces.max_tokens), facts=facts))


@dataclass
class _Encoded:
    """A part as arrays."""

    place: pathlib.Path
    tokens: np.ndarray
    types: np.ndarray | None
    labels: list[str]
    places: list[str] = field(repr=False)
    shares: np.ndarray
    numbers: bool
    alone: np.ndarray  # of pairs, a digest of each text, int64 [n, 2]
    cut: int = 0
    longest: int = 0
    empty: int = 0


def _encode(spec: str, given: Rows, pieces: Tokenizer) -> _Encoded:
    """Reads the rows of a part and turns them into tokens."""
    tokens, types = array.array("i"), array.array("i")
    labels: list[str] = []
    places: list[str] = []
    shares, alone = array.array("d"), array.array("q")
    known: dict[str, str] = {}  # one text for each label, however many examples have it
    pairs, too_long, longest, empty, doubtful = False, 0, 0, 0, False
    length = pieces.max_tokens
    for row in given.rows:
        if not row.label:
            raise DataError(f"{row.place}: the label is empty; expected {'a number' if given.numbers else 'a class'}")
        encoded = pieces.encode(row.text, row.second)
        own_tokens, own_types = pieces.fill(encoded)
        tokens.extend(own_tokens)
        if row.second is not None:
            pairs = True
            types.extend(own_types)
            alone.extend((_digest(row.text), _digest(row.second)))
        labels.append(known.setdefault(row.label, row.label))
        places.append(row.place)
        shares.append(_share(row))
        too_long += encoded.whole > length
        longest = max(longest, encoded.whole)
        empty += not row.text.strip()
        doubtful = doubtful or (row.first and given.guessed)
        if len(labels) % _CHECKED == 0:
            try:
                check_memory(given.place, 3 * (len(tokens) + len(types)) * tokens.itemsize, "its tokens")
            except FileError as error:
                raise DataError(str(error)) from None
    if not labels:
        raise DataError(f"data={spec}: {given.place} has no example")
    if doubtful and not given.numbers and len(labels) > 2 and labels.count(labels[0]) == 1:
        raise DataError(
            f"{places[0]}: no other line has the label {cut(labels[0], 60)!r}; if this line names the columns, add header=yes to "
            "the name of the source, else header=no"
        )
    return _Encoded(
        given.place,
        np.frombuffer(tokens, np.intc).astype(np.int32).reshape(-1, length),
        np.frombuffer(types, np.intc).astype(np.int32).reshape(-1, length) if pairs and pieces.types else None,
        labels,
        places,
        np.frombuffer(shares, np.float64).copy(),
        given.numbers,
        np.array(alone, np.int64).reshape(-1, 2),
        too_long,
        longest,
        empty,
    )


def _tell_shared(part: _Encoded, say: Say) -> None:
    """Says that pairs which have one text in common may be divided: they are held out by both of their texts."""
    if not len(part.alone):
        return
    texts, numbers = np.unique(part.alone, return_inverse=True)
    of = np.repeat(part.shares.view(np.int64), 2)  # the same for pairs that are equal
    pairs_of = np.unique(np.stack([numbers.ravel(), of]), axis=1)[0]
    if shared := int((np.bincount(pairs_of, minlength=len(texts)) > 1).sum()):
        say(
            f"text: {shared:,} texts are in several pairs, which may be held out apart; a file for each part keeps them together"
        )


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def _share(row: Row) -> float:
    """A number in [0, 1) that depends only on the text."""
    whole = row.text if row.second is None else f"{row.text}\0{row.second}"
    return int.from_bytes(hashlib.sha256(whole.encode()).digest()[:6], "big") / 2**48


def _describe(found: Mapping[str, _Encoded], pieces: Tokenizer, say: Say) -> None:
    """Says what was cut, and what may be wrong with the texts or the vocabulary."""
    total = sum(len(part.labels) for part in found.values())
    too_long, longest = sum(part.cut for part in found.values()), max(part.longest for part in found.values())
    if too_long:
        say(
            f"text: {too_long:,} of {total:,} examples have more than {pieces.max_tokens} tokens, up to {longest:,}, and are cut; "
            "--max_tokens sets the length"
        )
    elif 2 * longest <= pieces.max_tokens:
        say(f"text: no example has more than {longest} tokens; --max_tokens={max(longest, 8)} saves time")
    if empty := sum(part.empty for part in found.values()):
        say(f"text: {empty:,} of {total:,} texts are empty")
    read = sum(int((part.tokens != pieces.pad).sum()) for part in found.values()) - 2 * total
    unknown = sum(int((part.tokens == pieces.unknown).sum()) for part in found.values())
    if unknown > 0.02 * max(read, 1):
        say(f"text: {unknown / max(read, 1):.0%} of the tokens are unknown to the vocabulary; is it for this language?")


def _build_source(spec: str, found: Mapping[str, _Encoded], *, to_train: bool) -> Source:
    train = next(iter(found.values()))
    if len({part.numbers for part in found.values()}) > 1 or len({part.types is None for part in found.values()}) > 1:
        raise DataError(f"data={spec}: the parts differ in their columns; expected the same in every file")
    if train.numbers:
        classes: tuple[str, ...] = ()
        labels: dict[str, np.ndarray] = {name: _as_numbers(part) for name, part in found.items()}
    else:
        names = train.labels if to_train else [label for part in found.values() for label in part.labels]
        classes = _sort_classes(spec, train.place, names, to_train=to_train)
        numbers = {name: number for number, name in enumerate(classes)}
        labels = {name: _as_classes(part, numbers) for name, part in found.items()}
    parts = {name: _build_part(part, labels[name]) for name, part in found.items()}
    return make_divided(spec, classes, parts)


def _build_part(part: _Encoded, labels: np.ndarray) -> Part:
    inputs: dict[str, Any] = {} if part.types is None else {"types": part.types}
    index = np.arange(len(labels), dtype=np.int64)
    return Part(part.tokens, labels, index, part.shares, input_name="tokens", inputs=inputs)


def _sort_classes(spec: str, place: pathlib.Path, labels: Sequence[str], *, to_train: bool) -> tuple[str, ...]:
    """The classes of these labels, numbers by their value and everything else by name."""
    names = sorted(set(labels))
    values = [parse_number(name) for name in names]
    if len(names) < 2 and to_train:
        raise DataError(f"data={spec}: {place} has only one class, {names[0]!r}; a classifier needs two or more")
    if all(value is not None and math.isfinite(value) for value in values):
        fractions = [name for name in names if not name.lstrip("+-").isdecimal()]
        if len(fractions) > 2 and len(names) > 10:
            raise DataError(
                f"data={spec}: the labels are {len(names)} numbers such as {fractions[0]}; target=COLUMN instead of label=COLUMN "
                "trains on them as numbers"
            )
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    if to_train and 2 * len(names) > len(labels) and len(names) > 20:
        raise DataError(
            f"data={spec}: {len(labels)} examples have {len(names)} different labels, such as {cut(labels[0], 60)!r}; is "
            "this the column of the classes? label=COLUMN says which it is"
        )
    return tuple(names)


def _as_classes(part: _Encoded, numbers: Mapping[str, int]) -> np.ndarray:
    unknown = [position for position, name in enumerate(part.labels) if name not in numbers]
    if unknown:
        name = part.labels[unknown[0]]
        raise DataError(
            f"{part.places[unknown[0]]}: the training part has no class {cut(name, 60)!r} ({len(unknown)} examples have such a "
            f"label){nearest(name, list(numbers))}; its classes are {join_words(numbers, most=20)}"
        )
    return np.array([numbers[name] for name in part.labels], np.int64)


def _as_numbers(part: _Encoded) -> np.ndarray:
    found = [parse_number(text) for text in part.labels]
    for place, text, value in zip(part.places, part.labels, found, strict=True):
        if value is None or not math.isfinite(value):
            raise DataError(
                f"{place}: the target {cut(text, 60)!r} is not a finite number; if this line names the columns, add header=yes to "
                "the name of the source"
            )
    return np.array(found, np.float32)
