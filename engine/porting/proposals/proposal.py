"""A proposal for a port, line by line, and its forms: a rule file, a table and JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from engine.porting.errors import PortError
from engine.porting.rules import language
from engine.text import table

SURE = 0.8
_MOST_BYTES = 1 << 20  # the limit for a rule file (engine.porting.rules.language)


class Candidate(NamedTuple):
    """A tensor that may be meant, and the belief in it."""

    source: str
    confidence: float


@dataclass(frozen=True)
class Line:
    """A variable, by its path ``target``, and the tensors that it should be made from; several are joined.

    The transforms are written as in rules. ``confidence`` is the probability, in [0, 1], that this is what was meant,
    and ``candidates`` are other tensors that may be meant, the likeliest first.
    """

    source: tuple[str, ...]
    target: str
    transforms: tuple[str, ...]
    confidence: float
    reason: str
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Left:
    """A tensor that is proposed to be skipped; a ``hidden`` one need not be among those that the rules see."""

    name: str
    confidence: float
    reason: str
    hidden: bool = False


@dataclass(frozen=True)
class Missing:
    """A variable for which nothing is proposed."""

    path: str
    reason: str
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Proposal:
    """How the tensors of a source may become the variables of a model: a line for each variable, in model order.

    ``skips`` are the tensors that no variable is made from, in the source's order, ``missing`` the variables without a
    proposal, and ``layout`` says what was found out about the order of axes.
    """

    lines: tuple[Line, ...]
    skips: tuple[Left, ...] = ()
    missing: tuple[Missing, ...] = ()
    layout: str = ""

    def sure(self, *, at_least: float = SURE) -> float:
        """Returns the share of the variables with at least this confidence; 0.0 for a model without variables."""
        total = len(self.lines) + len(self.missing)
        return sum(line.confidence >= at_least for line in self.lines) / total if total else 0.0

    def renamed(self, real: Callable[[str], str]) -> Proposal:
        """Returns the same proposal with the names that tensors have in their file; those of hidden ones are real already."""

        def candidates(those: Iterable[Candidate]) -> tuple[Candidate, ...]:
            return tuple(each._replace(source=real(each.source)) for each in those)

        return replace(
            self,
            lines=tuple(
                replace(line, source=tuple(map(real, line.source)), candidates=candidates(line.candidates))
                for line in self.lines
            ),
            skips=tuple(left if left.hidden else replace(left, name=real(left.name)) for left in self.skips),
            missing=tuple(replace(each, candidates=candidates(each.candidates)) for each in self.missing),
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the proposal in types that JSON has."""
        return {
            "layout": self.layout,
            "lines": [_json(line) for line in self.lines],
            "skips": [asdict(left) for left in self.skips],
            "missing": [_json(variable) for variable in self.missing],
        }

    def left_to_user(self, *, at_least: float = SURE) -> list[str]:
        """Returns everything that the rule file leaves to the user, each as it is there, and in full.

        These are the variables and the tensors with a confidence below ``at_least``, variables without a proposal, and
        names that the rule language cannot express.
        """
        found = []
        for line in self.lines:
            rule = write_rule(line)
            if rule is None or line.confidence < at_least:
                found.append(f"{rule or _comment(line.target)}  ({line.confidence:.2f})")
        found += [f"{_comment(variable.path)}: {_comment(variable.reason)}" for variable in self.missing]
        return found + [
            f"skip {escape_pattern(left.name)}  ({left.confidence:.2f})"
            for left in self.skips
            if left.confidence < at_least
        ]

    def rules_text(self, *, at_least: float = SURE, note: str = "") -> str:
        """Returns a rule file (engine.porting.rules.language) with the confidence on every line.

        Lines below ``at_least``, and variables without a proposal, become comments with their candidates, for the user
        to decide; ``at_least=0`` turns all proposals into rules. ``note`` is a sentence for the top of the file. Raises
        PortError if there are more names than a rule file can hold.
        """
        for detail in (2, 1, 0):  # to stay below the limit, first the candidates are dropped, then the reasons
            text = "\n".join(self._text(at_least, detail, note)) + "\n"
            if len(text.encode("utf-8", "replace")) <= _MOST_BYTES:
                return text
        raise PortError(
            f"rules={len(self.lines) + len(self.skips)} lines: these are more than the {_MOST_BYTES:,} bytes "
            "that a rule file may have"
        )

    def _text(self, at_least: float, detail: int, note: str) -> Iterable[str]:
        number = sum(line.confidence >= at_least for line in self.lines)
        yield f"# Proposed from names and shapes: {number} of {len(self.lines) + len(self.missing)} variables with a"
        yield f"# confidence of {at_least:g} or more. The number after a line is its confidence; check the lines below 1."
        yield "# Lines that begin with `#` are left to you: remove the `# ` where they are right."
        if note:
            yield f"# {note}"
        if self.layout:
            yield f"# Kernels: {_comment(self.layout)}"
        yield ""
        for line in self.lines:
            text = write_rule(line)
            note = f"  # {line.confidence:.2f}" + (f" {_comment(line.reason)}" if detail else "")
            if text is None:
                yield f"# {_comment(line.target)}: the rule language cannot express these names{note}"
                continue
            yield ("" if line.confidence >= at_least else "# ") + text + note
            if line.confidence < at_least and detail == 2:
                yield from _others(line.candidates)
        for variable in self.missing:
            yield f"# fresh {escape_pattern(variable.path)}  # 0.00 {_comment(variable.reason)}"
            if detail == 2:
                yield from _others(variable.candidates)
        if self.skips:
            yield ""
        for left in self.skips:
            mark = "" if left.confidence >= at_least else "# "
            yield f"{mark}skip{'?' if left.hidden else ''} {escape_pattern(left.name)}  # {left.confidence:.2f} {_comment(left.reason) if detail else ''}".rstrip()

    def table(self) -> str:
        """Returns a table for a terminal: source, target, transforms, confidence, reason; the least certain first."""
        rows = [("source", "target", "transform", "confidence", "reason")]
        for line in sorted(self.lines, key=lambda line: line.confidence):
            how = " | ".join(line.transforms) or "-"
            others = "; or " + ", ".join(c.source for c in line.candidates[:3]) if line.confidence < SURE else ""
            others = others if line.candidates else ""
            rows.append((" + ".join(line.source), line.target, how, f"{line.confidence:.2f}", line.reason + others))
        rows += [("(none)", variable.path, "-", "", variable.reason) for variable in self.missing]
        skips = [left for left in self.skips if not left.hidden]
        rows += [(left.name, "(skip)", "-", f"{left.confidence:.2f}", left.reason) for left in skips]
        return table([tuple(_comment(cell) for cell in row) for row in rows])


def _json(entry: Line | Missing) -> dict[str, Any]:
    fields = asdict(entry)
    fields["candidates"] = [candidate._asdict() for candidate in entry.candidates]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}


def _others(candidates: Iterable[Candidate]) -> Iterable[str]:
    for other in candidates:
        yield f"#     or {_comment(other.source)}  # {other.confidence:.2f}"


def _comment(text: str) -> str:
    """Escapes what would break a line."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def escape_pattern(name: str) -> str:
    """Returns a regular expression without white space, one word of a rule file, that matches this name alone."""
    return "".join(_escaped(char) for char in name) or "(?:)"


def _escaped(char: str) -> str:
    if char.isspace() or not char.isprintable() or char in '"#':
        code = ord(char)
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    return re.escape(char) if char != "-" else "-"


def _template(name: str) -> str:
    """Returns a source name as written in a rule, quoted where it would otherwise be read as something else."""
    text = name.replace("\\", "\\\\")
    if name and re.fullmatch(r'[^\s"#|+<][^\s"]*', name):
        return text
    return '"' + text.replace('"', '\\"') + '"'


def write_rule(line: Line) -> str | None:
    """Returns the line as a rule; None where the language cannot express its names (line breaks, ` #`)."""
    text = f"{escape_pattern(line.target)} <- {' + '.join(map(_template, line.source))}"
    text += "".join(f" | {transform}" for transform in line.transforms)
    try:
        parsed = language.parse_rules(text)
    except PortError:
        return None
    if len(parsed.rules) != 1:
        return None
    rule = parsed.rules[0]
    match = rule.pattern.fullmatch(line.target)
    if match is None or rule.expand(match) != line.source or tuple(map(str, rule.transforms)) != line.transforms:
        return None
    return text
