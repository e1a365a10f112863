"""Walking a graph: everything once, circles included."""

from engine.graphs.reach import reach


def test_everything_that_can_be_reached_is_found_once_though_there_are_circles() -> None:
    graph = {"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": ["a"], "e": ["a"]}
    assert set(reach(["a"], graph.__getitem__)) == {"a", "b", "c", "d"}
    assert list(reach([], graph.__getitem__)) == []
