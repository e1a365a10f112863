"""What differs among workers is named: the fact, the values and the workers."""

from __future__ import annotations

from typing import Any

import pytest

from engine.distribution import differences
from engine.distribution.distribution import ALONE, DisagreementError, Distribution


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ([{"a": 1}, {"a": 1}], ""),
        ([{}, {}], ""),
        ([{"a": float("nan")}, {"a": float("nan")}], ""),
        ([{"a": {"x": 1, "y": 2}}, {"a": {"y": 2, "x": 1}}], ""),
        ([{"a": 1}, {"a": 2}], "a is 1 on w0 and 2 on w1"),
        ([{"a": 1}, {"a": True}], "a is 1 on w0 and true on w1"),
        ([{"a": 1}, {"a": 1.0}], "a is 1 on w0 and 1.0 on w1"),
        ([{"a": None}, {}], "a is null on w0 and missing on w1"),
        ([{}, {"a": "x"}], "a is missing on w0 and x on w1"),
        ([{"a": ""}, {"a": "x"}], 'a is "" on w0 and x on w1'),
        ([{"a": "-"}, {}], "a is - on w0 and missing on w1"),
        ([{"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}], "a: b: c is 1 on w0 and 2 on w1"),
        ([{"a": {"b": 1}}, {"a": 3}], 'a is {"b": 1} on w0 and 3 on w1'),
        ([{"a": [1, 2, 3]}, {"a": [1, 5, 3]}], "a: item 2 is 2 on w0 and 5 on w1"),
        ([{"a": [1]}, {"a": [1, 2]}], "a is [1] on w0 and [1, 2] on w1"),
        ([{"a": 1}, {"a": 2}, {"a": 1}, {"a": 2}], "a is 1 on w0, w2 and 2 on w1, w3"),
        ([{"a": 1}, *[{"a": 2}] * 9], "a is 1 on w0 and 2 on w1, w2, w3 and 6 more"),
    ],
)
def test_a_difference_is_told_with_both_values(facts: list[Any], words: str) -> None:
    assert differences.find(facts, "w{}".format) == words


def test_long_values_are_cut_to_where_they_differ() -> None:
    words = differences.find([{"a": "x" * 500 + "one"}, {"a": "x" * 500 + "two"}], "w{}".format)
    assert "xone on w0" in words
    assert "xtwo on w1" in words
    assert len(words) < 100
    words = differences.find([{"a": "x" * 100}, {"a": "x" * 101}], "w{}".format)
    assert words == f"a is ...{'x' * 15} on w0 and ...{'x' * 16} on w1"


def test_many_differences_are_counted() -> None:
    words = differences.find([{str(n): 0 for n in range(20)}, {str(n): 1 for n in range(20)}], "w{}".format)
    assert len(words.splitlines()) == 9
    assert words.endswith("... and 12 more")


def test_every_worker_raises_the_same_words_after_it_has_parted_from_the_others() -> None:
    parted = []
    run = Distribution(
        kind="multiworker",
        workers=2,
        worker=1,
        addresses=("a:1", "b:2"),
        exchange=lambda facts: [{"flags": {"--seed": 1}}, facts],
        part=lambda: parted.append(True),
    )
    run.agree({"flags": {"--seed": 1}})
    assert not parted
    with pytest.raises(DisagreementError, match=r"--seed is 1 on worker 0 \(a:1\) and 2 on worker 1 \(b:2\)"):
        run.agree({"flags": {"--seed": 2}})
    assert parted
    ALONE.agree({"flags": 1})
    ALONE.close()
