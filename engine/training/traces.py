"""Traced functions, of which only those of the selections that were used last are kept.

A trace of a large model takes tens of MiB. A run has few selections, but a process that tries many of them, such as a
search over filters, would grow without end.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any

from engine.selection.selection import Selection

KEPT = 4  # selections; a run rarely returns to more of them than this


class Traces:
    """Finds the trace of a selection, or makes it. The traces of the ``kept`` selections used last are kept.

    What was given (``give``), instead of traced, cannot be traced again and is kept with every selection.
    """

    def __init__(self) -> None:
        self.kept = KEPT
        self._traced: dict[Selection, dict[Hashable, Any]] = {}  # the selection used last comes last
        self._given: dict[tuple[Selection, Hashable], Any] = {}

    def __len__(self) -> int:
        return len(self._given) + sum(map(len, self._traced.values()))

    def find(self, selection: Selection, key: Hashable, trace: Callable[[], Any]) -> Any:
        """Returns what was given or traced for a selection and key; calls ``trace`` if there is nothing."""
        own = self._traced[selection] = self._traced.pop(selection, {})
        while len(self._traced) > self.kept:
            del self._traced[next(iter(self._traced))]
        if self._given and (selection, key) in self._given:
            return self._given[selection, key]
        if key not in own:
            own[key] = trace()
        return own[key]

    def give(self, selection: Selection, key: Hashable, value: Any) -> None:
        """Makes ``find`` return this value for a selection and key, from now on."""
        self._given[selection, key] = value

    def of(self, selection: Selection) -> Iterator[Any]:
        """Yields what is kept for a selection, what was given first."""
        yield from (value for (other, _), value in self._given.items() if other == selection)
        yield from self._traced.get(selection, {}).values()
