"""Minimum cuts: by hand, and against every cut of small graphs."""

from __future__ import annotations

import itertools
import random

from engine.frostline.mincut import UNBOUNDED, Network


def network(nodes: int, edges: list[tuple[int, int, int]]) -> Network:
    made = Network()
    for _ in range(nodes):
        made.add_node()
    for edge in edges:
        made.add_edge(*edge)
    return made


def test_the_cheapest_edge_of_a_chain_is_cut() -> None:
    assert network(4, [(0, 1, 5), (1, 2, 3), (2, 3, 4)]).min_cut(0, 3) == (3, {2, 3})


def test_of_equal_cuts_the_one_nearest_the_sink_is_taken() -> None:
    assert network(4, [(0, 1, 3), (1, 2, 3), (2, 3, 3)]).min_cut(0, 3) == (3, {3})


def test_unbounded_edges_are_never_cut_and_without_others_there_is_no_cut() -> None:
    assert network(3, [(0, 1, UNBOUNDED), (1, 2, 7)]).min_cut(0, 2) == (7, {2})
    assert network(3, [(0, 1, UNBOUNDED), (1, 2, UNBOUNDED)]).min_cut(0, 2)[0] >= UNBOUNDED
    assert network(2, []).min_cut(0, 1) == (0, {1})


def test_a_path_of_many_thousand_nodes_is_cut_without_recursion() -> None:
    count = 20_000
    assert network(count, [(n, n + 1, 2 + (n == 77)) for n in range(count - 1)]).min_cut(0, count - 1)[0] == 2


def test_it_is_the_least_of_all_cuts_of_random_graphs() -> None:
    rng = random.Random(0)
    for _ in range(60):
        nodes = rng.randint(3, 7)
        edges = [(a, b, rng.randint(0, 9)) for a, b in itertools.permutations(range(nodes), 2) if rng.random() < 0.5]
        sink = nodes - 1

        def price(side: set[int], edges: list[tuple[int, int, int]] = edges) -> int:
            return sum(capacity for a, b, capacity in edges if a not in side and b in side)

        inner = range(1, sink)
        sides = [{sink, *chosen} for n in range(nodes) for chosen in itertools.combinations(inner, n)]
        least = min(price(side) for side in sides)
        flow, found = network(nodes, edges).min_cut(0, sink)
        assert flow == least == price(found)
        assert all(found <= side for side in sides if price(side) == least)  # nearest the sink
