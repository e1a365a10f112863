"""Weights of classes: balanced ones as scikit-learn's formula has them, and those of files."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from engine.errors import InputError
from engine.training.class_weights import balance_classes, describe_weights, read_class_weights

CLASSES = ("cat", "dog", "emu")


def test_balanced_weights_give_every_class_the_same_sum() -> None:
    labels = np.repeat([0, 1, 2], [1, 3, 16])
    weights = np.array(balance_classes(labels, CLASSES))
    np.testing.assert_array_equal(weights, 20 / (3 * np.array([1, 3, 16])))
    np.testing.assert_allclose(np.bincount(labels, weights[labels]), 20 / 3, rtol=1e-15)


def test_a_class_without_examples_has_no_balanced_weight() -> None:
    with pytest.raises(
        InputError, match=r"class_weights=balanced: 1 of 3 classes have no training example.*emu; a file"
    ):
        balance_classes(np.array([0, 1, 1]), CLASSES)


@pytest.mark.parametrize(
    "text",
    [
        '{"dog": 2, "cat": 0.5, "emu": 0}',
        "class,weight\ncat,0.5\ndog,2\nemu,0\n",
        "\ufeffemu,0\r\ndog,2e0\r\n\r\n cat , 0.5 \r\n",
    ],
)
def test_files_name_classes_in_any_order(tmp_path: pathlib.Path, text: str) -> None:
    (tmp_path / "weights").write_text(text, encoding="utf-8", newline="")
    assert read_class_weights(tmp_path / "weights", CLASSES) == (0.5, 2.0, 0.0)


def test_a_class_that_weighs_nothing_is_told() -> None:
    assert describe_weights((1, 0, 0), CLASSES).endswith("; examples of dog, emu do not count in the loss")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"cat": 1, "dog": 1}', "it has no weight for emu; expected one for each of 3 classes"),
        ('{"cat": 1, "dog": 1, "emu": 1, "eel": 1}', "the data have no class 'eel'; their classes are cat, dog, emu"),
        ('{"cat": 1, "cat": 2, "dog": 1, "emu": 1}', "class 'cat' has two weights"),
        ("cat,1\ndog,1\nemu,-1", "the weight of 'emu' is -1; expected a finite number of at least 0"),
        ('{"cat": NaN, "dog": 1, "emu": 1}', "the weight of 'cat' is nan"),
        ('{"cat": Infinity, "dog": 1, "emu": 1}', "the weight of 'cat' is inf"),
        ('{"cat": "1", "dog": 1, "emu": 1}', "expected a JSON object.*the weight of 'cat' is '1'"),
        ('{"cat": true, "dog": 1, "emu": 1}', "the weight of 'cat' is True"),
        ("[1, 2, 3]", "expected a JSON object"),
        ('{"cat": {"dog": 1}}', "expected a JSON object"),
        ("cat,1\ndog\nemu,1", "line 2 has 1 cells"),
        ("cat,1\ndog,x\nemu,1", "line 2: 'x' is not a number"),
        ("cat,1\n\n\ndog,x\nemu,1", "line 4: 'x' is not a number"),
        ('cat,1\n"dog,1\nemu,1', "line 2 is not valid CSV"),
        ("cat,0\ndog,0\nemu,0", "all weights are 0"),
        ("", "it has no weight for cat, dog, emu"),
        ("{", "expected a JSON object"),
        ("[" * 100000, "expected a JSON object"),
    ],
)
def test_what_is_wrong_in_a_file_is_told(tmp_path: pathlib.Path, text: str, message: str) -> None:
    (tmp_path / "weights.csv").write_text(text)
    with pytest.raises(InputError, match=f"class_weights=.*weights.csv: .*{message}"):
        read_class_weights(tmp_path / "weights.csv", CLASSES)


def test_what_is_not_a_file_of_text_is_told(tmp_path: pathlib.Path) -> None:
    (tmp_path / "weights.csv").write_bytes(b"\xff\xfe\x00cat")
    with pytest.raises(InputError, match="expected a JSON object"):
        read_class_weights(tmp_path / "weights.csv", CLASSES)
    with pytest.raises(
        InputError, match="there is no such file; expected balanced or a JSON or CSV file; nearest: balanced"
    ):
        read_class_weights("balancd", CLASSES)
