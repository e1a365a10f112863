"""Weights between a base and what was trained from it: exact at both ends, rounded once in between."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from engine.errors import InputError
from engine.porting.deltas.interpolation import RATIOS, interpolate, parse_ratios


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16], ids=str)
def test_both_ends_are_exact_and_the_rest_is_rounded_once(dtype: type) -> None:
    rng = np.random.default_rng(0)
    base, tuned = ({"w": rng.standard_normal((5, 3)).astype(dtype), "n": np.int64(n)} for n in (3, 8))
    for ratio, end in ((0.0, base), (1.0, tuned)):
        assert interpolate(base, tuned, ratio)["w"].tobytes() == end["w"].tobytes()
    found = interpolate(base | {"other": np.zeros(2)}, tuned, 0.3)
    assert set(found) == {"w", "n"}
    assert found["n"] == 8
    assert found["w"].dtype == dtype
    wanted = 0.7 * base["w"].astype(np.float64) + 0.3 * tuned["w"].astype(np.float64)
    np.testing.assert_array_equal(found["w"], wanted.astype(dtype))


def test_ratios_and_bases_that_do_not_fit_are_refused() -> None:
    assert parse_ratios("auto") == RATIOS
    assert parse_ratios(" 0.25, 1") == (0.25, 1.0)
    for text, said in (
        ("2", "numbers from 0 to 1"),
        ("0.5,", "numbers from 0 to 1"),
        ("1,1.0", "appears twice"),
        ("nan", "numbers from 0"),
    ):
        with pytest.raises(InputError, match=said):
            parse_ratios(text)
    one = {"w": np.zeros(2)}
    with pytest.raises(InputError, match=r"ratio=1\.5"):
        interpolate(one, one, 1.5)
    with pytest.raises(InputError, match="it lacks v, or has another shape"):
        interpolate(one, {"v": np.zeros(2)}, 0.5)
    with pytest.raises(InputError, match="it lacks w"):
        interpolate(one, {"w": np.zeros(3)}, 0.5)
