"""Graph traversal: everything that can be reached from some nodes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

Node = TypeVar("Node", bound=Hashable)


def reach(start: Iterable[Node], following: Callable[[Node], Iterable[Node]]) -> dict[Node, None]:
    """Returns the nodes of ``start`` and all that can be reached from them; ``following`` leads one step further.

    The result is a dict, used as a set that keeps the order in which nodes were found.

    Example:
        >>> list(reach([1], lambda n: [2 * n, n + 1] if n < 3 else []))
        [1, 2, 3, 4]
    """
    found: dict[Node, None] = {}
    pending = list(start)
    while pending:
        node = pending.pop()
        if node not in found:
            found[node] = None
            pending.extend(following(node))
    return found
