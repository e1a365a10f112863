"""What is proposed for a port, line by line, and its texts: a rule file, a table, JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from engine.porting.errors import PortError
from engine.porting.rules import language
from engine.text import table

SURE = 0.8
_MOST_BYTES = 1 << 20  # of a rule file (engine.porting.rules.language)


class Candidate(NamedTuple):
    """A tensor that may be meant, and how much of the belief it has."""

    source: str
    confidence: float


@dataclass(frozen=True)
class Line:
    """A variable and what it is proposed to be made of.

    Attributes:
        source: names of the tensors, to be joined when several.
        target: the variable's path.
        transforms: as rules write them.
        confidence: in [0, 1]: how probable it is that this is what was meant.
        reason: in words.
        candidates: other tensors that may be meant, the likeliest first.
    """

    source: tuple[str, ...]
    target: str
    transforms: tuple[str, ...]
    confidence: float
    reason: str
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Left:
    """A tensor proposed to be skipped."""

    name: str
    confidence: float
    reason: str


@dataclass(frozen=True)
class Missing:
    """A variable for which nothing is proposed."""

    path: str
    reason: str
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Proposal:
    """How the tensors of a source may become the variables of a model.

    Attributes:
        lines: one for each variable that has a proposal, in model order.
        skips: tensors that nothing is made of, in the source's order.
        missing: variables without a proposal, in model order.
        layout: what was found about the order of axes.
    """

    lines: tuple[Line, ...]
    skips: tuple[Left, ...] = ()
    missing: tuple[Missing, ...] = ()
    layout: str = ""

    def sure(self, *, at_least: float = SURE) -> float:
        """The share of the model's variables that have a line of at least this confidence; 0.0 without variables."""
        total = len(self.lines) + len(self.missing)
        return sum(line.confidence >= at_least for line in self.lines) / total if total else 0.0

    def to_json(self) -> dict[str, Any]:
        """The proposal as JSON's types."""
        return {
            "layout": self.layout,
            "lines": [_json(line) for line in self.lines],
            "skips": [asdict(left) for left in self.skips],
            "missing": [_json(variable) for variable in self.missing],
        }

    def rules_text(self, *, at_least: float = SURE) -> str:
        """A rule file (engine.porting.rules.language) with the confidence on every line.

        Lines below ``at_least``, and variables without a proposal, are comments with their candidates, for the
        user to decide; ``at_least=0`` makes rules of all proposals.

        Raises:
            PortError: so many names that no rule file could hold them.
        """
        for detail in (2, 1, 0):  # a rule file has a limit: first the candidates go, then the reasons
            text = "\n".join(self._text(at_least, detail)) + "\n"
            if len(text.encode("utf-8", "replace")) <= _MOST_BYTES:
                return text
        raise PortError(
            f"rules={len(self.lines) + len(self.skips)} lines: they would be more than the {_MOST_BYTES:,} "
            "bytes of a rule file"
        )

    def _text(self, at_least: float, detail: int) -> Iterable[str]:
        number = sum(line.confidence >= at_least for line in self.lines)
        yield f"# Proposed from names and shapes: {number} of {len(self.lines) + len(self.missing)} variables at"
        yield f"# {at_least:g} or more. The number behind a line is its confidence; check what is below 1."
        yield "# Lines that begin with `#` are left to you: take the `# ` away where they are right."
        if self.layout:
            yield f"# Kernels: {_comment(self.layout)}"
        yield ""
        for line in self.lines:
            text = rule_text(line)
            note = f"  # {line.confidence:.2f}" + (f" {_comment(line.reason)}" if detail else "")
            if text is None:
                yield f"# {_comment(line.target)}: the rule language cannot write these names{note}"
                continue
            yield ("" if line.confidence >= at_least else "# ") + text + note
            if line.confidence < at_least and detail == 2:
                yield from _others(line.candidates)
        for variable in self.missing:
            yield f"# fresh {pattern(variable.path)}  # 0.00 {_comment(variable.reason)}"
            if detail == 2:
                yield from _others(variable.candidates)
        if self.skips:
            yield ""
        for left in self.skips:
            mark = "" if left.confidence >= at_least else "# "
            yield f"{mark}skip {pattern(left.name)}  # {left.confidence:.2f} {_comment(left.reason) if detail else ''}".rstrip()

    def table(self) -> str:
        """All of it for a terminal: source, target, transforms, confidence, reason; the least sure first."""
        rows = [("source", "target", "transform", "confidence", "reason")]
        for line in sorted(self.lines, key=lambda line: line.confidence):
            how = " | ".join(line.transforms) or "-"
            others = "; or " + ", ".join(c.source for c in line.candidates[:3]) if line.confidence < SURE else ""
            others = others if line.candidates else ""
            rows.append((" + ".join(line.source), line.target, how, f"{line.confidence:.2f}", line.reason + others))
        rows += [("(none)", variable.path, "-", "", variable.reason) for variable in self.missing]
        rows += [(left.name, "(skip)", "-", f"{left.confidence:.2f}", left.reason) for left in self.skips]
        return table([tuple(_comment(cell) for cell in row) for row in rows])


def _json(entry: Line | Missing) -> dict[str, Any]:
    fields = asdict(entry)
    fields["candidates"] = [candidate._asdict() for candidate in entry.candidates]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}


def _others(candidates: Iterable[Candidate]) -> Iterable[str]:
    for other in candidates:
        yield f"#     or {_comment(other.source)}  # {other.confidence:.2f}"


def _comment(text: str) -> str:
    """Text on one line."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def pattern(name: str) -> str:
    """A regular expression that matches this name alone, without white space, as one word of a rule file."""
    return "".join(_escaped(char) for char in name) or "(?:)"


def _escaped(char: str) -> str:
    if char.isspace() or not char.isprintable() or char in '"#':
        code = ord(char)
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    return re.escape(char) if char != "-" else "-"


def _template(name: str) -> str:
    """A source name as a rule writes it: quoted where it would else be read as something else."""
    text = name.replace("\\", "\\\\")
    if name and re.fullmatch(r'[^\s"#|+<][^\s"]*', name):
        return text
    return '"' + text.replace('"', '\\"') + '"'


def rule_text(line: Line) -> str | None:
    """The rule that says the line; None where the language cannot write its names (line breaks, ` #`)."""
    text = f"{pattern(line.target)} <- {' + '.join(map(_template, line.source))}"
    text += "".join(f" | {transform}" for transform in line.transforms)
    try:
        parsed = language.parse(text)
    except PortError:
        return None
    if len(parsed.rules) != 1:
        return None
    rule = parsed.rules[0]
    match = rule.pattern.fullmatch(line.target)
    if match is None or rule.expand(match) != line.source or tuple(map(str, rule.transforms)) != line.transforms:
        return None
    return text
