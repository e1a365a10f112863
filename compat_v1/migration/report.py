"""The report on an old project: a page, the same for programs, and the files that begin its migration."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from compat_v1.migration.commands import Way, write_script
from compat_v1.migration.facts import GraphFacts, WeightsFacts
from compat_v1.migration.scan import Scan
from engine.files import write_bytes, write_json

FORMAT = 1
FILES = ("migrate.md", "migrate.json", "commands.sh", "ledger.json", "proposed.rules")
_MOST_ITEMS, _MOST_GRAPHS = 16, 4


@dataclass(frozen=True)
class Report:
    """What was found out about an old project.

    ``ledger`` accounts for every tensor of the weights; None without weights. ``rules`` is the text of proposed rules, ""
    if there are none. ``damage`` has a line for everything that is damaged. ``chosen`` are the weights that are looked at;
    ``question`` says what the user has to choose first, "" for nothing.
    """

    scan: Scan
    weights: tuple[WeightsFacts, ...]
    graphs: tuple[GraphFacts, ...]
    ways: tuple[Way, ...]
    damage: tuple[str, ...]
    ledger: dict[str, Any] | None
    rules: str
    chosen: str | None
    question: str = ""

    def page(self) -> str:
        """The report as text, which is also valid Markdown."""
        return make_printable("\n".join(" ".join(line.split("\n")) for line in self._lines()))

    def _lines(self) -> Iterator[str]:
        yield f"# {self.scan.root}: {self.scan.kind}"
        yield from ("", "## Files", "")
        items = self.scan.items
        for item in items[:_MOST_ITEMS]:
            latest = " (the one that is looked at)" if item.path == self.chosen else ""
            yield f"- {self._relative(item.path)}: {item.purpose}{latest}{'; DAMAGED' if item.damage else ''}"
        if len(items) > _MOST_ITEMS:
            yield f"- ... and {len(items) - _MOST_ITEMS} more"
        if self.damage:
            yield from ("", "## Damage", "")
            yield from (f"- {line}" for line in self.damage)
        for weights in self.weights:
            if weights.readable and weights.source == self.chosen:
                yield from ("", f"## Weights: {self._relative(weights.source)}", "")
                yield from (f"- {line}" for line in weights.lines)
        for graph in self.graphs[:_MOST_GRAPHS]:
            yield from ("", f"## Graph: {self._relative(str(graph.path))}", "")
            yield from (f"- {line}" if line[:1] != " " else f"  - {line.strip()}" for line in graph.lines)
            if graph.problem:
                yield f"- it cannot be read: {graph.problem}"
        if len(self.graphs) > _MOST_GRAPHS:
            yield from ("", f"{len(self.graphs) - _MOST_GRAPHS} more graphs were read; migrate.json has them")
        yield from ("", "## Ways on")
        for way in self.ways:
            yield from ("", f"### {way.title}: {way.answer}", "", way.reason, *([""] if way.notes else []))
            yield from (f"- {note}" for note in way.notes)
            if way.commands:
                yield ""
                yield from (f"    {command}" for command in way.commands)

    def _relative(self, path: str) -> str:
        if not path.startswith(f"{self.scan.root}/"):
            return path
        return path[len(str(self.scan.root)) + 1 :] or "(a checkpoint without a name)"

    def to_json(self) -> dict[str, Any]:
        """The content of migrate.json."""
        return {
            "format": FORMAT,
            "old": str(self.scan.root),
            "kind": self.scan.kind,
            "files": [{"path": each.path, "purpose": each.purpose, "damage": each.damage} for each in self.scan.items],
            "damage": list(self.damage),
            "checkpoints": list(self.scan.checkpoints),
            "chosen": self.chosen,
            "question": self.question,
            "weights": [{"source": each.source, **each.data, "damage": list(each.damage)} for each in self.weights],
            "graphs": [{"path": str(each.path), "problem": each.problem, **each.data} for each in self.graphs],
            "ways": [
                {
                    "name": way.name,
                    "possible": way.possible,
                    "reason": way.reason,
                    "notes": list(way.notes),
                    "commands": [list(command.words) for command in way.commands],
                    "asks": list(dict.fromkeys(name for command in way.commands for name in command.asked())),
                }
                for way in self.ways
            ],
        }

    def write(self, folder: str | os.PathLike[str]) -> list[pathlib.Path]:
        """Writes the files into a folder that exists, each atomically, and returns their paths."""
        place = pathlib.Path(folder)
        head = f"The ways on from {self.scan.root}, found by `frostline migrate`.\nmigrate.md says what was found, and why."
        texts = {"migrate.md": self.page() + "\n", "commands.sh": write_script(self.ways, head=head)}
        if self.rules:
            texts["proposed.rules"] = self.rules
        for name, text in texts.items():
            write_bytes(place / name, os.fsencode(text))  # the commands name files by their exact bytes
        written = [place / name for name in texts]
        for name, value in (("ledger.json", self.ledger), ("migrate.json", self.to_json())):
            if value is not None:
                write_json(place / name, _make_valid(value))
                written.append(place / name)
        return written


def make_printable(text: str) -> str:
    """A text without what a terminal would obey, or cannot show: names in files of others may hold anything.

    Example:
        >>> make_printable("a\\x1b[2Jb")
        'a\\\\x1b[2Jb'
    """
    return "".join(
        letter if letter == "\n" or letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def _make_valid(value: Any) -> Any:
    """A value for JSON, in which no text has bytes that are not Unicode."""
    if isinstance(value, dict):
        return {_make_valid(key): _make_valid(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_make_valid(each) for each in value]
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
