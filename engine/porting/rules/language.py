r"""The rule language: which source tensor becomes which variable. Rules are data, in files ``*.rules``.

A line is one of

    TARGET <- SOURCE [+ SOURCE]... [| TRANSFORM]...
    skip SOURCE-PATTERN       source tensors that are left out on purpose
    fresh TARGET-PATTERN      variables that keep their initial values on purpose
    prefix SOURCE-PATTERN     cut off the front of every source name that has it, before all else
    detect SOURCE-PATTERN     the file is of this layout when, for every such line, a tensor fits
    images NAME               what images such weights were trained on: tf (-1 to 1), torch (ImageNet's mean and
                              deviation) or unit (0 to 1)

TARGET and patterns are regular expressions of a whole variable path or source name. SOURCE is a
literal name in which ``\1`` ... ``\9`` stand for the groups of TARGET and ``\0`` for the whole path. A
name with white space goes into double quotes. ``\d+`` in a SOURCE stands for shards that were numbered by hand: all
tensors with a number there, in numeric order, from the lowest without a gap. Several sources are joined by
``concat``. Transforms (engine.porting.rules.language.transforms) are applied from left to right. ``#`` at the start of a line or after
white space begins a comment.

    blocks/(\d+)/norm1/gamma  <-  encoder.layer.\1.layernorm_before.weight
    patch/kernel              <-  embeddings.projection.weight | transpose(2, 3, 1, 0) | reshape(-1, d3)
    blocks/(\d+)/scale1       <-? encoder.layer.\1.layer_scale1.lambda1
    table                     <-  shared/weights_\d+ | concat(0)
    skip? pooler\..*

A rule must hold for some variable, a skip for some tensor. With ``?`` (``<-?``, ``skip?``, ``fresh?``)
it need not, and a ``<-?`` whose sources are not all in the file is passed over: for parts that only
some models have, and for names that differ between versions. Two rules that both apply to one
variable are an error.
"""

from __future__ import annotations

import itertools
import pathlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import NoReturn

from engine.files import PathLike
from engine.porting.errors import PortError
from engine.porting.rules import transforms
from engine.porting.rules.transforms import Transform
from engine.text import nearest

_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|\S+')
_KEYWORDS = ("skip", "fresh", "prefix", "detect")
IMAGES = ("tf", "torch", "unit")
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Rule:
    """One ``<-`` line.

    Attributes:
        where: ``FILE:LINE``.
        pattern: of the target.
        sources: templates.
        transforms: in order.
        optional: written with ``?``.
    """

    where: str
    pattern: re.Pattern[str]
    sources: tuple[str, ...]
    transforms: tuple[Transform, ...]
    optional: bool

    def expand(self, match: re.Match[str], names: Collection[str] = ()) -> tuple[str, ...]:
        """The source names for a target that the pattern matched.

        ``names`` are those of the source, which say what shards there are; of a gap the first that is missing is
        among the result, and where there are none at all, the template.
        """
        wanted: list[str] = []
        for template in self.sources:
            ends = [
                re.sub(r"\\([0-9\\])", lambda m: "\\" if m[1] == "\\" else match[int(m[1])] or "", part)
                for part in _numbered(template)
            ]
            wanted += ends if len(ends) == 1 else _shards(ends[0], ends[1], names)
        return tuple(wanted)

    def could_give(self, name: str) -> bool:
        """True when some target's expansion is this source name."""
        for template in self.sources:
            ends = [".+".join(map(re.escape, re.split(r"\\[0-9]", part))) for part in _numbered(template)]
            if any(end.strip(".+") for end in ends) and re.fullmatch(r"\d+".join(ends), name):
                return True
        return False


@dataclass(frozen=True)
class PatternLine:
    """A ``skip``, ``fresh``, ``prefix`` or ``detect`` line."""

    where: str
    pattern: re.Pattern[str]
    optional: bool


@dataclass(frozen=True)
class Rules:
    """A parsed rule file."""

    name: str
    rules: tuple[Rule, ...]
    skip: tuple[PatternLine, ...] = ()
    fresh: tuple[PatternLine, ...] = ()
    prefix: tuple[PatternLine, ...] = ()
    detect: tuple[PatternLine, ...] = ()
    images: str | None = None

    def without_prefix(self, name: str) -> str:
        """A source name as the rules see it."""
        for line in self.prefix:
            match = line.pattern.match(name)
            if match is not None and match.end() < len(name):
                name = name[match.end() :]
        return name


def read(path: PathLike) -> Rules:
    """Parses a rule file.

    Raises:
        PortError: it cannot be read, or a line says nothing sensible (FILE:LINE).
    """
    path = pathlib.Path(path)
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise PortError(f"rules={path}: more than {_MOST_BYTES:,} bytes are no rule file")
        return parse(content.decode(), name=path.name)
    except OSError as error:
        raise PortError(f"rules={path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise PortError(f"rules={path}: no text in UTF-8") from None


def parse(text: str, *, name: str = "rules") -> Rules:
    """Parses the text of a rule file; ``name`` is the file's in messages.

    Raises:
        PortError: a line says nothing sensible; says which.
    """
    rules: list[Rule] = []
    lines: dict[str, list[PatternLine]] = {keyword: [] for keyword in _KEYWORDS}
    images: str | None = None
    for number, line in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        if not line:
            continue
        where = f"{name}:{number}"
        words = _WORD.findall(line)
        keyword, optional = words[0].removesuffix("?"), words[0].endswith("?")
        if any(word in ("<-", "<-?") for word in words):
            rules.append(_rule(where, words))
        elif keyword in ("skip", "fresh") or words[0] in _KEYWORDS:
            if len(words) != 2:
                _fail(where, f"`{line}`: `{words[0]}` takes one pattern")
            lines[keyword].append(PatternLine(where, _pattern(where, words[1]), optional))
        elif words[0] == "images":
            if len(words) != 2 or words[1] not in IMAGES or images is not None:
                _fail(where, f"`{line}`: `images` takes one of {', '.join(IMAGES)}, once")
            images = words[1]
        else:
            _fail(
                where,
                f"`{line}`: a line is `TARGET <- SOURCE | TRANSFORM` or begins with {', '.join((*_KEYWORDS, 'images'))}"
                + nearest(keyword, [*_KEYWORDS, "images"]),
            )
    return Rules(name, tuple(rules), **{keyword: tuple(found) for keyword, found in lines.items()}, images=images)


def _rule(where: str, words: list[str]) -> Rule:
    arrows = [position for position, word in enumerate(words) if word in ("<-", "<-?")]
    if arrows != [1]:
        _fail(where, "a rule is one target pattern, one `<-`, and what it is made of")
    pattern = _pattern(where, words[0])
    pipes = [position for position, word in enumerate(words) if word == "|"] + [len(words)]
    sources = words[2 : pipes[0]]
    if not sources or len(sources) % 2 == 0 or any(word != "+" for word in sources[1::2]) or "+" in sources[::2]:
        _fail(where, f"`{' '.join(sources)}`: one source name is wanted after `<-`, or several with ` + ` between")
    templates = tuple(_name(word) for word in sources[::2])
    for template in templates:
        if len(_numbered(template)) > 2:
            _fail(where, f"`{template}`: one `\\d+` numbers the shards; several cannot")
        for reference in re.findall(r"\\(.)", "".join(_numbered(template))):
            if not (reference == "\\" or (reference.isdigit() and int(reference) <= pattern.groups)):
                _fail(
                    where,
                    f"`{template}` refers to \\{reference}, but `{words[0]}` has {pattern.groups} groups "
                    "(a backslash itself is written twice)",
                )
    steps = []
    for begin, end in itertools.pairwise(pipes):
        try:
            steps.append(transforms.parse(" ".join(words[begin + 1 : end])))
        except ValueError as error:
            _fail(where, str(error))
    if any(len(_numbered(template)) > 1 for template in templates) and not any(step.name == "concat" for step in steps):
        _fail(where, "numbered shards (`\\d+`) need a `concat(axis)`")
    if len(templates) > 1 and not any(step.name == "concat" for step in steps):
        _fail(where, f"{len(templates)} sources need a `concat(axis)`")
    return Rule(where, pattern, templates, tuple(steps), words[1].endswith("?"))


def _numbered(template: str) -> list[str]:
    r"""What is before, between and after the ``\d+`` of a template; the template alone where it has none."""
    cuts = [found.span() for found in re.finditer(r"\\\\|\\d\+", template) if found[0] != r"\\"]
    edges = [0, *itertools.chain.from_iterable(cuts), len(template)]
    return [template[start:stop] for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def _shards(before: str, after: str, names: Collection[str]) -> list[str]:
    """The numbered tensors in numeric order, and the first that is missing among them."""
    pattern = re.compile(rf"{re.escape(before)}(\d{{1,9}}){re.escape(after)}")
    found = sorted((int(match[1]), name) for name in names if (match := pattern.fullmatch(name)))
    if not found:
        return [rf"{before}\d+{after}"]
    start = min(found[0][0], 1)
    for number, (has, _) in enumerate(found, start):
        if has > number:
            return [name for _, name in found] + [f"{before}{number}{after}"]
        if has < number:
            return [name for _, name in found] + [f"{before}{has}{after} once only"]
    return [name for _, name in found]


def _pattern(where: str, word: str) -> re.Pattern[str]:
    try:
        return re.compile(_name(word))
    except re.error as error:
        _fail(where, f"`{word}` is no regular expression: {error}")


def _name(word: str) -> str:
    return word[1:-1].replace('\\"', '"') if word.startswith('"') else word


def _fail(where: str, what: str) -> NoReturn:
    raise PortError(f"{where}: {what}")
