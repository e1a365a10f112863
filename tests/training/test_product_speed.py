"""The speed of products: figures of this device, and a device that has none of one kind."""

from __future__ import annotations

from typing import Any

import pytest
import tensorflow as tf

from engine.training import product_speed
from engine.training.product_speed import ProductSpeed


def test_products_are_measured_once_and_change_no_generator() -> None:
    product_speed.measure_products.cache_clear()
    tf.random.set_seed(3)
    expected = tf.random.uniform([3]).numpy().tolist()
    tf.random.set_seed(3)
    found = product_speed.measure_products("cpu")
    assert tf.random.uniform([3]).numpy().tolist() == expected
    assert found.float32 > 1e8
    assert found.bfloat16 > 1e7
    assert product_speed.measure_products("cpu") is found


def test_a_device_that_cannot_multiply_bfloat16_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply = tf.matmul

    def refuse(a: Any, b: Any) -> Any:
        if a.dtype == tf.bfloat16:
            raise tf.errors.UnimplementedError(None, None, "no such kernel")
        return multiply(a, b)

    monkeypatch.setattr(tf, "matmul", refuse)
    product_speed.measure_products.cache_clear()
    found = product_speed.measure_products("cpu")
    product_speed.measure_products.cache_clear()
    assert (found.bfloat16, found.ratio, found.text()) == (0.0, 0.0, "the device cannot multiply bfloat16")


def test_figures_are_in_words() -> None:
    assert ProductSpeed(1e11, 4e11).text() == (
        "bfloat16 products are 4.00 times as fast as those of float32 (400 and 100 GFLOP/s)"
    )
    assert "GFLOP/s for each core" in ProductSpeed(1e11, 4e11, cores=True).text()
