"""``BASE+DELTA[+DELTA]``: weights, and the deltas that are put onto them in this order."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.errors import InputError
from engine.files import PathLike
from engine.text import join_words

WORDS = ("auto", "none", "imagenet")  # bases that are not files
_MOST = 12  # plus signs in a text that may be a part of a path


@dataclass(frozen=True)
class Chain:
    """What ``--weights`` names: ``base`` is a word or a path; without ``deltas`` it is all there is."""

    base: str
    deltas: tuple[str, ...] = ()


def parse_chain(text: PathLike, *, name: str = "weights") -> Chain:
    """Splits ``BASE+DELTA[+DELTA]``. A path may contain plus signs; what exists decides which of them separate.

    Raises InputError, which names the argument ``name``, if nothing of these names exists, or the text has two meanings.

    Example:
        >>> parse_chain("auto")
        Chain(base='auto', deltas=())
        >>> parse_chain("auto+")
        Traceback (most recent call last):
        engine.errors.InputError: weights='auto+': expected a file after the plus sign (BASE+DELTA)
    """
    whole = os.fspath(text)
    pieces = whole.split("+")
    if len(pieces) == 1 or _is_base(whole):
        return Chain(whole)
    ways = [Chain(base, tuple(deltas)) for base, *deltas in _join_pieces(pieces)] if len(pieces) <= _MOST else []
    found = [way for way in ways if _is_base(way.base) and all(map(os.path.isfile, way.deltas))]
    if len(found) == 1:
        return found[0]
    if found:
        meanings = join_words(" + ".join(map(repr, (way.base, *way.deltas))) for way in found)
        raise InputError(f"{name}={whole!r}: it means {meanings}; rename a file, so that it has one meaning")
    base, *deltas = pieces
    if not all(pieces):
        where = "before" if not base else "after"
        raise InputError(f"{name}={whole!r}: expected a file {where} the plus sign (BASE+DELTA)")
    missing = [] if _is_base(base) else [base]
    missing += [delta for delta in deltas if not os.path.isfile(delta)]
    folders = [f"{delta}/trained.npz" for delta in deltas if os.path.isfile(f"{delta}/trained.npz")]
    hint = f"; the delta of a run is its file {folders[0]}" if folders else ""
    raise InputError(
        f"{name}={whole!r}: there is no file of this name, nor, read as BASE+DELTA, {join_words(map(repr, missing))}{hint}"
    )


def parse_deltas(text: PathLike, *, name: str = "delta") -> list[str]:
    """Splits ``DELTA[+DELTA]``, as ``parse_chain`` does; raises InputError also if the first is not a file.

    Example:
        >>> parse_deltas("auto")
        Traceback (most recent call last):
        engine.errors.InputError: delta='auto': expected a file that a run wrote, such as RUN/trained.npz
    """
    chain = parse_chain(text, name=name)
    if chain.base in WORDS:
        raise InputError(f"{name}={os.fspath(text)!r}: expected a file that a run wrote, such as RUN/trained.npz")
    return [chain.base, *chain.deltas]


def _join_pieces(pieces: Sequence[str]) -> Iterator[list[str]]:
    """All ways to take the plus signs between pieces as separators or as parts of names, except that of one name."""
    for separating in range(1, 1 << (len(pieces) - 1)):
        names = [pieces[0]]
        for number, piece in enumerate(pieces[1:]):
            if separating >> number & 1:
                names.append(piece)
            else:
                names[-1] += f"+{piece}"
        yield names


def _is_base(text: str) -> bool:
    """Whether weights are found under this name: a word, a file, a folder, or the prefix of a checkpoint of TensorFlow."""
    if text in WORDS or os.path.exists(text) or os.path.exists(f"{text}.index"):
        return True
    place = pathlib.Path(text)
    return bool(text) and any(True for _ in _shards(place))


def _shards(place: pathlib.Path) -> Iterator[str]:
    names = os.listdir(place.parent) if place.parent.is_dir() else []
    return (name for name in names if name.startswith(f"{place.name}-00000-of-"))
