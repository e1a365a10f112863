r"""Shards that were numbered by hand are joined in numeric order by ``\d+`` in a rule's source."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import porting
from engine.files import write_npz
from engine.porting import PortError
from engine.porting.rules import language


def port(tmp_path: pathlib.Path, arrays: dict[str, np.ndarray], text: str, shape: list[int]) -> tuple[Any, Any]:
    write_npz(tmp_path / "w.npz", arrays.items())
    model = {"table": tf.Variable(tf.zeros(shape))}
    return model["table"], porting.load(model, tmp_path / "w.npz", language.parse_rules(text))


def shards(numbers: list[int], name: str = "s/weights_{}") -> dict[str, np.ndarray]:
    return {name.format(number): np.full((2, 3), number, np.float32) for number in numbers}


@pytest.mark.parametrize("first", [0, 1])
def test_ten_comes_after_nine(tmp_path: pathlib.Path, first: int) -> None:
    numbers = list(range(first, first + 12))
    table, ledger = port(tmp_path, shards(numbers[::-1]), r"table <- s/weights_\d+ | concat(0)", [24, 3])
    assert table.numpy()[::2, 0].tolist() == numbers
    assert ledger.loaded[0].source == tuple(f"s/weights_{number}" for number in numbers)
    assert ledger.unused == ()


def test_transforms_apply_to_each_and_a_group_may_stand_before_the_number(tmp_path: pathlib.Path) -> None:
    table, _ = port(
        tmp_path,
        shards([0, 1, 2], "table_part{}.w"),
        r"(t.*) <- \1_part\d+.w | transpose(1, 0) | concat(1)",
        [3, 6],
    )
    assert table.numpy()[0].tolist() == [0, 0, 1, 1, 2, 2]


def test_other_sources_join_in_the_order_of_the_rule(tmp_path: pathlib.Path) -> None:
    arrays = shards([0, 1]) | {"last": np.full((1, 3), 9, np.float32)}
    table, _ = port(tmp_path, arrays, r"table <- s/weights_\d+ + last | concat(0)", [5, 3])
    assert table.numpy()[:, 0].tolist() == [0, 0, 1, 1, 9]


@pytest.mark.parametrize(
    ("numbers", "said"),
    [([0, 1, 3], "expects s/weights_2"), ([2, 3], "expects s/weights_1"), ([], r"expects s/weights_\\d\+")],
)
def test_a_gap_is_an_error(tmp_path: pathlib.Path, numbers: list[int], said: str) -> None:
    with pytest.raises(PortError, match=said):
        port(tmp_path, shards(numbers) | {"other": np.ones(1)}, r"table <- s/weights_\d+ | concat(0)", [6, 3])


def test_one_number_written_twice_is_an_error(tmp_path: pathlib.Path) -> None:
    arrays = shards([0, 1]) | {"s/weights_01": np.ones((2, 3), np.float32)}
    with pytest.raises(PortError, match="only once"):
        port(tmp_path, arrays, r"table <- s/weights_\d+ | concat(0)", [6, 3])


def test_names_that_only_begin_alike_are_no_shards(tmp_path: pathlib.Path) -> None:
    arrays = shards([0, 1]) | {"s/weights_0/Adam": np.ones((2, 3), np.float32), "s/weights_x": np.ones(1, np.float32)}
    _, ledger = port(tmp_path, arrays, "table <- s/weights_\\d+ | concat(0)\nskip s/weights_(x|.*/Adam)", [4, 3])
    assert len(ledger.loaded[0].source) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (r"table <- s/weights_\d+", r"numbered shards \(`\\d\+`\) need a `concat\(axis\)`"),
        (r"table <- s_\d+/w_\d+ | concat(0)", "may number the shards"),
        (r"table <- s\\d+", None),  # a backslash, a d and a plus
        (r"table <- s\d", r"refers to \\d"),
    ],
)
def test_what_a_line_may_say(text: str, said: str | None) -> None:
    if said is None:
        assert language.parse_rules(text).rules[0].sources == (r"s\\d+",)
    else:
        with pytest.raises(PortError, match=said):
            language.parse_rules(text)


def test_a_rule_knows_what_it_could_give() -> None:
    (rule,) = language.parse_rules(r"(a|b)/table <- \1/weights_\d+ | concat(0)").rules
    assert rule.could_give("x/weights_7")
    assert not rule.could_give("x/weights_y")
