r"""The rule language, which says what source tensor becomes what variable. Rules are data in files ``*.rules``.

A line has one of these forms:

    TARGET <- SOURCE [+ SOURCE]... [or SOURCE [+ SOURCE]...] [| TRANSFORM]...
    skip SOURCE-PATTERN       leave these source tensors out on purpose
    fresh TARGET-PATTERN      let these variables keep their initial values on purpose
    prefix SOURCE-PATTERN     first of all, cut this off the front of every source name that has it
    detect SOURCE-PATTERN     a file has this layout if every such line matches a tensor
    expect NODE-PATTERN ATTRIBUTE VALUES   the graph that the weights belong to has this, at least at one operation of
                              such a name and at all of them: for what names and shapes do not show, such as strides.
                              VALUES are separated by commas; the ATTRIBUTE ``op`` is the operation's kind
    images NAME               the images that such weights were trained on: tf (-1 to 1), torch (ImageNet's mean and
                              standard deviation) or unit (0 to 1)
    note "TEXT"               what whoever uses these rules must know; it is printed and kept in the ledger
    map NAME FROM=TO...       words that stand for one another: in the lines below, ``\{NAME:1}`` in a SOURCE is what group 1
                              of TARGET becomes

TARGET and patterns are regular expressions that match a whole variable path or source name. SOURCE is a
literal name in which ``\1`` ... ``\9`` stand for the groups of TARGET and ``\0`` for the whole path. A name with
white space is written in double quotes. ``\d+`` in a SOURCE stands for shards that were numbered by hand: all tensors
with a number there, in numeric order, from the lowest and without a gap. ``concat`` joins several sources. What follows ``or``
is taken where the file lacks a source before it, such as the average of a variable. Transforms
(engine.porting.rules.transforms) are applied from left to right. A ``#`` at the start of a line or after white space
begins a comment.

    blocks/(\d+)/norm1/gamma  <-  encoder.layer.\1.layernorm_before.weight
    patch/kernel              <-  embeddings.projection.weight | transpose(2, 3, 1, 0) | reshape(-1, d3)
    blocks/(\d+)/scale1       <-? encoder.layer.\1.layer_scale1.lambda1
    table                     <-  shared/weights_\d+ | concat(0)
    lstm/lstm_cell/kernel     <-  rnn/basic_lstm_cell/kernel | slice(0, 0, t0) | lstm_gates
    skip? pooler\..*
    expect .*pool1/MaxPool strides 1,2,2,1

A rule must match some variable, and a skip some tensor. With ``?`` (``<-?``, ``skip?``, ``fresh?``) they
need not, and a ``<-?`` whose sources are not all in the file is ignored; this is for parts that only some
models have, and for names that differ between versions. Without a graph beside the weights, ``expect`` is an error and
``expect?`` is said to be unchecked. Two rules that apply to the same variable are an error.
"""

from __future__ import annotations

import itertools
import pathlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NoReturn

from engine.files import FileError, PathLike
from engine.patterns import Pattern, PatternError
from engine.porting.errors import PortError
from engine.porting.rules import transforms
from engine.porting.rules.transforms import Transform
from engine.reading import read_file
from engine.text import cut, nearest

_REFERENCE = re.compile(r"\\(?:([0-9\\])|\{(\w+):([0-9])\})")  # \1, a literal backslash or \{NAME:1}
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|\S+')
_KEYWORDS = ("skip", "fresh", "prefix", "detect")
_ALL_KEYWORDS = (*_KEYWORDS, "expect", "images", "note", "map")
IMAGES = ("tf", "torch", "unit")
_MOST_BYTES = 1 << 20


Maps = tuple[tuple[str, tuple[tuple[str, str], ...]], ...]  # (NAME, ((FROM, TO), ...)) of each ``map`` line


@dataclass(frozen=True)
class Rule:
    """One ``<-`` line, at ``where`` (``FILE:LINE``); ``sources`` are templates, and ``optional`` stands for ``?``.

    ``instead`` are the templates after ``or``.
    """

    where: str
    pattern: Pattern
    sources: tuple[str, ...]
    transforms: tuple[Transform, ...]
    optional: bool
    instead: tuple[str, ...] = ()
    maps: Maps = ()

    def expand(self, match: re.Match[str], names: Collection[str] = ()) -> tuple[str, ...]:
        """Returns the source names for a target that the pattern matched.

        ``names`` are all names of the source, which say what shards there are. Where shards are missing, the result
        includes the first one that is, or the template if there are none at all.
        """
        first = self._expand(self.sources, match, names)
        if self.instead and not all(name in names for name in first):
            second = self._expand(self.instead, match, names)
            return second if all(name in names for name in second) else first
        return first

    def _expand(self, templates: Sequence[str], match: re.Match[str], names: Collection[str]) -> tuple[str, ...]:
        wanted: list[str] = []
        for template in templates:
            ends = [_REFERENCE.sub(lambda found: self._fill(found, match), part) for part in _numbered(template)]
            wanted += ends if len(ends) == 1 else _shards(ends[0], ends[1], names)
        return tuple(wanted)

    def _fill(self, reference: re.Match[str], match: re.Match[str]) -> str:
        """What a reference in a template stands for; raises PortError if its map does not have the word."""
        if reference[1] == "\\":
            return "\\"
        word = match[int(reference[1] or reference[3])] or ""
        if reference[2] is None:
            return word
        known = dict(dict(self.maps)[reference[2]])
        if word not in known:
            raise PortError(
                f"{self.where}: {match[0]}: `map {reference[2]}` does not have {word!r}{nearest(word, list(known))}"
            )
        return known[word]

    def could_give(self, name: str) -> bool:
        """Whether the expansion for some target is this source name."""
        for template in (*self.sources, *self.instead):
            ends = [
                ".+".join(map(re.escape, re.split(r"\\[0-9]|\\\{\w+:[0-9]\}", part))) for part in _numbered(template)
            ]
            pattern = Pattern(r"\d+".join(ends), f"{self.where}: `{cut(template)}`")
            if any(end.strip(".+") for end in ends) and pattern.fullmatch(name):
                return True
        return False


@dataclass(frozen=True)
class PatternLine:
    """A ``skip``, ``fresh``, ``prefix`` or ``detect`` line."""

    where: str
    pattern: Pattern
    optional: bool


@dataclass(frozen=True)
class Expected:
    """An ``expect`` line: the values of an attribute, as texts, at the operations whose name the pattern matches."""

    where: str
    pattern: Pattern
    attribute: str
    values: tuple[str, ...]
    optional: bool

    def __str__(self) -> str:
        return f"{self.pattern.pattern} {self.attribute} {','.join(self.values)}"


@dataclass(frozen=True)
class Rules:
    """A parsed rule file."""

    name: str
    rules: tuple[Rule, ...]
    skip: tuple[PatternLine, ...] = ()
    fresh: tuple[PatternLine, ...] = ()
    prefix: tuple[PatternLine, ...] = ()
    detect: tuple[PatternLine, ...] = ()
    expect: tuple[Expected, ...] = ()
    images: str | None = None
    notes: tuple[str, ...] = ()

    def without_prefix(self, name: str) -> str:
        """Returns a source name as the rules see it."""
        for line in self.prefix:
            match = line.pattern.match(name)
            if match is not None and match.end() < len(name):
                name = name[match.end() :]
        return name


def read_rules(path: PathLike) -> Rules:
    """Parses a rule file; raises PortError (with FILE:LINE) if it cannot be read or a line is not valid."""
    path = pathlib.Path(path)
    try:
        return parse_rules(read_file(path, _MOST_BYTES).decode(), name=path.name)
    except FileError as error:
        raise PortError(f"rules={error}") from None
    except OSError as error:
        raise PortError(f"rules={path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise PortError(f"rules={path}: the file is not UTF-8 text") from None


def parse_rules(text: str, *, name: str = "rules") -> Rules:
    """Parses the text of a rule file called ``name``; raises PortError (with the line) if one is not valid."""
    rules: list[Rule] = []
    expected: list[Expected] = []
    lines: dict[str, list[PatternLine]] = {keyword: [] for keyword in _KEYWORDS}
    images: str | None = None
    notes: list[str] = []
    maps: Maps = ()
    for number, line in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        if not line:
            continue
        where = f"{name}:{number}"
        words = _WORD.findall(line)
        keyword, optional = words[0].removesuffix("?"), words[0].endswith("?")
        if any(word in ("<-", "<-?") for word in words):
            rules.append(_rule(where, words, maps))
        elif keyword in ("skip", "fresh") or words[0] in _KEYWORDS:
            if len(words) != 2:
                _fail(where, f"`{line}`: `{words[0]}` takes exactly one pattern")
            lines[keyword].append(PatternLine(where, _pattern(where, words[1]), optional))
        elif keyword == "expect":
            if len(words) != 4:
                _fail(where, f"`{line}`: `expect` takes a pattern, an attribute and its values without spaces")
            values = tuple(_name(words[3]).split(","))
            expected.append(Expected(where, _pattern(where, words[1]), words[2], values, optional))
        elif words[0] == "images":
            if len(words) != 2 or words[1] not in IMAGES or images is not None:
                _fail(where, f"`{line}`: `images` takes one of {', '.join(IMAGES)} and may appear once")
            images = words[1]
        elif words[0] == "note":
            if len(words) != 2 or not _name(words[1]):
                _fail(where, f"`{line}`: `note` takes one text, in double quotes")
            notes.append(_name(words[1]))
        elif words[0] == "map":
            maps += (_map(where, words, maps),)
        else:
            _fail(
                where,
                f"`{line}`: expected `TARGET <- SOURCE | TRANSFORM` or one of {', '.join(_ALL_KEYWORDS)}"
                + nearest(keyword, _ALL_KEYWORDS),
            )
    found = {keyword: tuple(patterns) for keyword, patterns in lines.items()}
    return Rules(name, tuple(rules), **found, expect=tuple(expected), images=images, notes=tuple(notes))


def _map(where: str, words: list[str], maps: Maps) -> tuple[str, tuple[tuple[str, str], ...]]:
    pairs = tuple(
        (before, after) for before, equals, after in (_name(word).partition("=") for word in words[2:]) if equals
    )
    if (
        len(words) < 3
        or len(dict(pairs)) < len(words) - 2
        or not re.fullmatch(r"\w+", words[1])
        or words[1] in dict(maps)
    ):
        _fail(where, f"`{cut(' '.join(words))}`: `map` takes a new name and FROM=TO, each FROM once")
    return words[1], pairs


def _rule(where: str, words: list[str], maps: Maps = ()) -> Rule:
    arrows = [position for position, word in enumerate(words) if word in ("<-", "<-?")]
    if arrows != [1]:
        _fail(where, "expected one target pattern, one `<-` and one or more sources")
    pattern = _pattern(where, words[0])
    pipes = [position for position, word in enumerate(words) if word == "|"] + [len(words)]
    chosen = words[2 : pipes[0]]
    at = chosen.index("or") if "or" in chosen else len(chosen)
    alternatives = [_templates(where, part) for part in (chosen[:at], *([chosen[at + 1 :]] if "or" in chosen else []))]
    for template in itertools.chain(*alternatives):
        if len(_numbered(template)) > 2:
            _fail(where, f"`{template}`: only one `\\d+` may number the shards")
        _check_references(where, template, words[0], pattern.groups, maps)
    steps = []
    for begin, end in itertools.pairwise(pipes):
        try:
            steps.append(transforms.parse_transform(" ".join(words[begin + 1 : end])))
        except ValueError as error:
            _fail(where, str(error))
    if any(len(_numbered(template)) > 1 for template in itertools.chain(*alternatives)) and not any(
        step.name == "concat" for step in steps
    ):
        _fail(where, "numbered shards (`\\d+`) need a `concat(axis)`")
    if (most := max(map(len, alternatives))) > 1 and not any(step.name == "concat" for step in steps):
        _fail(where, f"{most} sources need a `concat(axis)`")
    for one, other in itertools.pairwise(steps):
        gates, added = sorted((one, other), key=lambda step: step.name == "add")
        if added.name == "add" and gates.name.endswith("_gates") and len(added.arguments) == 1:
            _fail(
                where,
                f"`{added}` next to `{gates}` would add to every gate; `lstm_gates | add(1.0, 0, 4, 1)` adds to the "
                "forget gate of a bias",
            )
    instead = alternatives[1] if len(alternatives) > 1 else ()
    return Rule(where, pattern, alternatives[0], tuple(steps), words[1].endswith("?"), instead, maps)


def _templates(where: str, sources: list[str]) -> tuple[str, ...]:
    if not sources or len(sources) % 2 == 0 or any(word != "+" for word in sources[1::2]) or "+" in sources[::2]:
        _fail(where, f"`{' '.join(sources)}`: expected one source name after `<-`, or several joined by ` + `")
    return tuple(_name(word) for word in sources[::2])


def _check_references(where: str, template: str, target: str, groups: int, maps: Maps) -> None:
    text = "".join(_numbered(template))
    for found in _REFERENCE.finditer(text):
        if found[2] is not None and (found[2] not in dict(maps) or int(found[3]) > groups):
            _fail(
                where,
                f"`{template}`: `{found[0]}` needs a line `map {found[2]}` above it, and a group {found[3]} in `{target}`",
            )
    for reference in re.findall(r"\\(.)", re.sub(r"(\\\\)|\\\{\w+:[0-9]\}", r"\1", text)):
        if not (reference == "\\" or (reference.isdigit() and int(reference) <= groups)):
            _fail(
                where,
                f"`{template}` refers to \\{reference}, but `{target}` has {groups} groups "
                "(write a literal backslash twice)",
            )


def _numbered(template: str) -> list[str]:
    r"""Splits a template at its ``\d+``; a template without one is the only part."""
    cuts = [found.span() for found in re.finditer(r"\\\\|\\d\+", template) if found[0] != r"\\"]
    edges = [0, *itertools.chain.from_iterable(cuts), len(template)]
    return [template[start:stop] for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def _shards(before: str, after: str, names: Collection[str]) -> list[str]:
    """Returns the numbered tensors in numeric order, followed by the first missing one if there is a gap."""
    pattern = re.compile(rf"{re.escape(before)}(\d{{1,9}}){re.escape(after)}")
    found = sorted((int(match[1]), name) for name in names if (match := pattern.fullmatch(name)))
    if not found:
        return [rf"{before}\d+{after}"]
    start = min(found[0][0], 1)
    for number, (has, _) in enumerate(found, start):
        if has > number:
            return [name for _, name in found] + [f"{before}{number}{after}"]
        if has < number:
            return [name for _, name in found] + [f"{before}{has}{after} only once"]
    return [name for _, name in found]


def _pattern(where: str, word: str) -> Pattern:
    try:
        return Pattern(_name(word), f"{where}: `{cut(word)}`")
    except PatternError as error:
        _fail(where, f"`{cut(word)}` is not a valid regular expression: {error}")


def _name(word: str) -> str:
    return word[1:-1].replace('\\"', '"') if word.startswith('"') else word


def _fail(where: str, what: str) -> NoReturn:
    raise PortError(f"{where}: {what}")
