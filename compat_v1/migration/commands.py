"""Commands as words, some of which the user has to complete, and their text for a shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

# What the user has to say, since nothing of an old project does: the name in a command -> what is asked.
ASKED = {
    "DATA": "the data to train on, such as folder:photos (docs/data_and_models.md)",
    "PREPROCESS": "the values of images on which the graph was trained: pixels (0 to 255), unit (0 to 1), tf (-1 to 1), torch or caffe",
    "LOSS": "the loss: sigmoid, mse, or graph:NAME for a loss tensor of the graph",
    "TARGET": "the model to port into, such as keras:ResNet50, vit:B/16 or py:module:factory (docs/porting.md)",
}
_NAME = re.compile(rf"\$({'|'.join(ASKED)})")


@dataclass(frozen=True)
class Command:
    """A command of ``frostline`` as words. ``$NAME`` in a word, with a name of ``ASKED``, is completed by the user."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(_quote(word) for word in ("frostline", *self.words))

    def asked(self) -> list[str]:
        """The names that the user has to complete, in the order of the words."""
        return list(dict.fromkeys(name for word in self.words for name in _NAME.findall(word)))

    def complete(self, values: Mapping[str, str]) -> list[str]:
        """The words after ``frostline`` with what the user said.

        Example:
            >>> Command(("finetune", "--data=$DATA")).complete({"DATA": "npz:x.npz"})
            ['finetune', '--data=npz:x.npz']
        """
        return [_NAME.sub(lambda match: values[match[1]], word) for word in self.words]


@dataclass(frozen=True)
class Way:
    """A way on from an old project.

    Attributes:
        name, title: a word for programs, and what it is for people.
        possible: whether it is open; None where it depends on what only the user knows.
        reason: why, one or more sentences.
        commands: what to run, in order.
        notes: what else was found on the way.
    """

    name: str
    title: str
    possible: bool | None
    reason: str
    commands: tuple[Command, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def answer(self) -> str:
        return {True: "yes", False: "no", None: "perhaps"}[self.possible]


def count(number: int, noun: str) -> str:
    """A number of things.

    Example:
        >>> count(1, "variable"), count(1200, "variable")
        ('1 variable', '1,200 variables')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _quote(word: str) -> str:
    """Quotes a word for a shell, in which only the names that are asked for are completed."""
    parts = _NAME.split(word)
    if len(parts) == 1:
        return shlex.quote(word)
    return "".join(f'"${part}"' if place % 2 else shlex.quote(part) if part else "" for place, part in enumerate(parts))


def write_script(ways: Iterable[Way], *, head: str) -> str:
    """The text of commands.sh: `sh commands.sh NAME` runs the commands of one way."""
    lines = ["#!/bin/sh", *(f"# {line}".rstrip() for line in head.splitlines()), "set -eu", 'case "${1:-}" in']
    names = []
    for way in ways:
        if not way.commands:
            continue
        names.append(way.name)
        lines.append(f"{way.name})  # {way.title}: {way.answer}")
        for name in dict.fromkeys(name for command in way.commands for name in command.asked()):
            lines.append(f'  : "${{{name}:?{ASKED[name].replace("`", "")}}}"')
        lines += [f"  {command}" for command in way.commands]
        lines.append("  ;;")
    usage = "|".join(names) or "(no way is open)"
    return "\n".join([*lines, f'*) echo "usage: sh commands.sh {usage}" >&2; exit 2 ;;', "esac", ""])
