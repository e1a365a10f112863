"""Two weights files compared: bits decide whether they differ, and numbers say by how much."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import numpy as np
import pytest

from engine.files import Npz, write_npz
from engine.porting.differences import (
    Difference,
    Nested,
    compare_files,
    find_nesting,
    group_differences,
    part_of,
    to_json,
)

A = {"head/kernel": np.array([[3.0, 4.0]], np.float32), "head/bias": np.zeros(2, np.float32), "n": np.int64(3)}


def compare(tmp_path: pathlib.Path, one: dict[str, Any], other: dict[str, Any]) -> dict[str, Difference]:
    for name, arrays in (("a", one), ("b", other)):
        write_npz(tmp_path / f"{name}.npz", arrays.items())
    with Npz(tmp_path / "a.npz") as a, Npz(tmp_path / "b.npz") as b:
        found = compare_files(a, b)
    to_json(found)
    group_differences(found)
    return {name: difference for name, difference, _ in found if difference is not None}


def test_equal_files_do_not_differ_whatever_they_hold(tmp_path: pathlib.Path) -> None:
    odd = {"x": np.array([np.nan, np.inf, -0.0], np.float32), "b": np.array(True), "e": np.zeros((0, 3), np.float16)}
    assert compare(tmp_path, A | odd, dict(reversed((A | odd).items()))) == {}


def test_how_much_a_tensor_differs(tmp_path: pathlib.Path) -> None:
    found = compare(tmp_path, A, A | {"head/kernel": np.array([[3.0, 4.5]], np.float32)})
    assert set(found) == {"head/kernel"}
    each = found["head/kernel"]
    assert (each.what, each.elements, each.size, each.largest, each.relative) == ("values", 1, 2, 0.5, 0.1)


CASES: dict[str, tuple[Any, Any, str, float]] = {
    "sign of zero": (np.float32(0.0), np.float32(-0.0), "values", 0.0),
    "not a number": (np.float32(1.0), np.float32(np.nan), "values", math.inf),
    "infinite": (np.float32(np.inf), np.float32(-np.inf), "values", math.inf),
    "from zero": (np.zeros(3, np.float32), np.ones(3, np.float32), "values", 1.0),
    "dtype": (np.float32(1.0), np.float64(1.0), "float32 in the first, float64 in the second", 0.0),
    "shape": (np.zeros(3), np.zeros((1, 3)), "[3] in the first, [1, 3] in the second", 0.0),
    "integers": (np.int64(3), np.int64(-4), "values", 7.0),
    "booleans": (np.array([True]), np.array([False]), "values", 1.0),
    "complex": (np.complex64(1j), np.complex64(1), "values", math.sqrt(2)),
    "text": (np.array(["a"]), np.array(["b"]), "values", 0.0),
    "one bit": (np.float32(1.0), np.nextafter(np.float32(1.0), np.float32(2.0)), "values", 2.0**-23),
}


@pytest.mark.parametrize("case", CASES)
def test_a_difference_of_any_kind_is_found(tmp_path: pathlib.Path, case: str) -> None:
    one, other, what, largest = CASES[case]
    (found,) = compare(tmp_path, {"x": one}, {"x": other}).values()
    assert found.what == what
    assert found.largest == pytest.approx(largest)


def test_names_of_one_side_differ(tmp_path: pathlib.Path) -> None:
    found = compare(tmp_path, A, {**{k: v for k, v in A.items() if k != "n"}, "m": np.float32(1)})
    assert {name: each.what for name, each in found.items()} == {"n": "only in the first", "m": "only in the second"}


@pytest.mark.parametrize(
    ("name", "part"),
    [("conv/kernel", "conv"), ("net_1.00/bn/beta", "net_1.00/bn"), ("x", "x"), ("layers/dense/vars/0", "layers/dense/vars"), ("blocks.0.attn.qkv.weight", "blocks.0")],
)  # fmt: skip
def test_parts_of_a_model(name: str, part: str) -> None:
    assert part_of(name) == part


def test_groups_sum_up_their_tensors(tmp_path: pathlib.Path) -> None:
    one = {"b/0/x": np.array([3.0]), "b/0/y": np.array([4.0]), "b/1/x": np.array([1.0])}
    for name, arrays in (("a", one), ("b", one | {"b/0/x": np.array([3.5])})):
        write_npz(tmp_path / f"{name}.npz", arrays.items())
    with Npz(tmp_path / "a.npz") as a, Npz(tmp_path / "b.npz") as b:
        first, second = group_differences(compare_files(a, b))
    assert (first.name, first.tensors, len(first.differing), first.largest, first.relative) == ("b/0", 2, 1, 0.5, 0.1)
    assert (second.name, second.differing) == ("b/1", ())


def test_a_model_nested_in_the_other_is_compared_by_its_own_names(tmp_path: pathlib.Path) -> None:
    inner = {"layers/dense/vars/0": np.ones(2, np.float32), "layers/dense_1/vars/0": np.ones(3, np.float32)}
    outer = {f"layers/functional/{name}": array for name, array in inner.items()}
    outer["layers/functional/layers/dense/vars/0"] = np.full(2, 3, np.float32)
    head = {"layers/head/vars/0": np.zeros(1, np.float32)}
    for name, arrays in (("a", inner), ("b", outer | head)):
        write_npz(tmp_path / f"{name}.npz", arrays.items())
    with Npz(tmp_path / "a.npz") as a, Npz(tmp_path / "b.npz") as b:
        assert find_nesting(b, a) == "layers/functional/"
        assert find_nesting(a, b) is None
        found = {name: difference for name, difference, _ in compare_files(a, Nested(b, "layers/functional/"))}
    assert found["layers/dense/vars/0"].largest == 2
    assert found["layers/dense_1/vars/0"] is None
    assert found["layers/head/vars/0"].what == "only in the second"


@pytest.mark.parametrize(
    "outer",
    [
        ["x/a", "y/a", "x/b", "y/b"],  # two places
        ["x/a"],  # not all of it
        ["x/a", "x/b", "b"],  # names in common
        ["x/a", "x/b", "x/x/a", "x/x/b"],
        [],
    ],
)
def test_what_is_not_nested_in_one_place_is_compared_as_it_is(tmp_path: pathlib.Path, outer: list[str]) -> None:
    paths = [tmp_path / "inner.npz", tmp_path / "outer.npz"]
    for path, names in zip(paths, (["a", "b"], outer), strict=True):
        write_npz(path, ((name, np.zeros(1, np.float32)) for name in names))
    with Npz(paths[0]) as inner, Npz(paths[1]) as whole:
        assert find_nesting(whole, inner) is None
