"""The minimum cut of a directed graph with capacities: Dinic's algorithm, in integers.

Source: Dinitz, Algorithm for solution of a problem of maximum flow in networks with power estimation, 1970.
"""

from __future__ import annotations

from collections import deque

from engine.graphs.reach import reach

UNBOUNDED = 1 << 60  # more than the sum of all bounded capacities


class Network:
    """A flow network whose ``size`` nodes are numbered from 0 in the order in which they are added."""

    def __init__(self) -> None:
        self.size = 0
        self._to: list[int] = []  # the end of each edge; edge e ^ 1 is its reverse
        self._left: list[int] = []  # the residual capacity of each edge
        self._edges: list[list[int]] = []

    def add_node(self) -> int:
        """Adds a node and returns its number."""
        self._edges.append([])
        self.size += 1
        return self.size - 1

    def add_edge(self, start: int, stop: int, capacity: int) -> None:
        """Adds an edge of a capacity from ``start`` to ``stop``."""
        for begin, end, left in ((start, stop, capacity), (stop, start, 0)):
            self._edges[begin].append(len(self._to))
            self._to.append(end)
            self._left.append(left)

    def min_cut(self, source: int, sink: int) -> tuple[int, set[int]]:
        """The capacity of the minimum cut nearest the sink, and the nodes on the sink's side of it.

        A capacity of at least ``UNBOUNDED`` means that there is no cut of bounded edges. The call consumes the network.
        """
        flow = 0
        while (levels := self._levels(source, sink))[sink] >= 0:
            at = [0] * self.size
            while pushed := self._push(source, sink, levels, at):
                flow += pushed
                if flow >= UNBOUNDED:
                    return flow, set()
        # from these nodes, the sink can be reached over edges with residual capacity
        before = reach([sink], lambda node: [self._to[edge] for edge in self._edges[node] if self._left[edge ^ 1]])
        return flow, set(before)

    def _levels(self, source: int, sink: int) -> list[int]:
        levels = [-1] * self.size
        levels[source] = 0
        pending = deque([source])
        while pending:
            node = pending.popleft()
            for edge in self._edges[node]:
                if self._left[edge] and levels[self._to[edge]] < 0:
                    levels[self._to[edge]] = levels[node] + 1
                    pending.append(self._to[edge])
        return levels

    def _push(self, source: int, sink: int, levels: list[int], at: list[int]) -> int:
        """Sends flow along one shortest path; without recursion, since graphs are thousands of nodes deep."""
        path: list[int] = []
        node = source
        while node != sink:
            edges = self._edges[node]
            while at[node] < len(edges):
                edge = edges[at[node]]
                if self._left[edge] and levels[self._to[edge]] == levels[node] + 1:
                    break
                at[node] += 1
            else:
                if node == source:
                    return 0
                levels[node] = -1  # a dead end
                node = self._to[path.pop() ^ 1]
                at[node] += 1
                continue
            path.append(edge)
            node = self._to[edge]
        amount = min(self._left[edge] for edge in path)
        for edge in path:
            self._left[edge] -= amount
            self._left[edge ^ 1] += amount
        return amount
