"""Sources: parts that are what the file says, and the rule that a bad file broke."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from engine.data import DataError, open_data
from engine.data.source import EMBEDDED

RNG = np.random.default_rng(0)


def pictures(count: int, size: int = 8, channels: int = 1) -> np.ndarray:
    return RNG.integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def arrays(train: int = 20, test: int | None = 6, val: int | None = None, classes: int = 3) -> dict[str, np.ndarray]:
    made = {}
    for prefix, count in (("train", train), ("test", test), ("val", val)):
        if count is not None:
            made[f"{prefix}_images"] = pictures(count)
            made[f"{prefix}_labels"] = np.arange(count) % classes
    return made


def opened(folder: pathlib.Path, content: dict[str, np.ndarray], **options: Any) -> Any:
    np.savez(folder / "data.npz", **content)  # type: ignore[arg-type]
    return open_data(f"npz:{folder / 'data.npz'}", **options)


def refused(folder: pathlib.Path, content: dict[str, np.ndarray], **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        opened(folder, content, **options)
    assert str(folder / "data.npz") in str(caught.value)
    return str(caught.value)


# --- parts ---


def test_the_embedded_source_is_whole() -> None:
    source = open_data(EMBEDDED)
    assert len(source.classes) == 10
    assert source.image_shape == source.train.images.shape[1:]
    assert source.test is not None
    assert set(source.train.labels) == set(source.test.labels) == set(range(10))
    assert len(source.train) + len(source.eval) == len(source.train.images)


def test_a_val_part_is_the_evaluation_part_and_nothing_is_held_out(tmp_path: pathlib.Path) -> None:
    content = arrays(val=5)
    source = opened(tmp_path, content)
    assert [len(part) for part in (source.train, source.eval, source.test)] == [20, 5, 6]
    np.testing.assert_array_equal(source.eval.images, content["val_images"])
    np.testing.assert_array_equal(source.test.images, content["test_images"])
    np.testing.assert_array_equal(source.train.index, np.arange(20))


def test_without_a_test_part_there_is_none(tmp_path: pathlib.Path) -> None:
    source = opened(tmp_path, arrays(test=None))
    assert source.test is None
    assert len(source.train) + len(source.eval) == 20


def test_a_held_out_part_is_disjoint_and_leaves_no_example_out(tmp_path: pathlib.Path) -> None:
    source = opened(tmp_path, arrays(train=50), eval_fraction=0.3)
    assert (len(source.train), len(source.eval)) == (35, 15)
    assert not set(source.train.index) & set(source.eval.index)
    assert set(source.train.index) | set(source.eval.index) == set(range(50))


def test_a_tenth_is_held_out_unless_told_otherwise(tmp_path: pathlib.Path) -> None:
    assert len(opened(tmp_path, arrays(train=50)).eval) == 5
    assert len(opened(tmp_path, arrays(train=50), eval_fraction=0.02).eval) == 1
    assert len(opened(tmp_path, arrays(train=50), eval_fraction=0.98).train) == 1


def test_the_held_out_part_is_the_same_every_time(tmp_path: pathlib.Path) -> None:
    """There is no seed to give: a run's seed cannot move examples from one part to the other."""
    content = arrays(train=50)
    one, two = opened(tmp_path, content), opened(tmp_path, content)
    np.testing.assert_array_equal(one.eval.index, two.eval.index)
    assert one.eval.index.tolist() != list(range(5))
    more = opened(tmp_path, content, eval_fraction=0.2)
    assert set(one.eval.index) < set(more.eval.index)


def test_examples_are_read_by_position_and_keep_their_index(tmp_path: pathlib.Path) -> None:
    content = arrays(train=30)
    source = opened(tmp_path, content, eval_fraction=0.5)
    batch = source.train.read(np.array([3, 0, 3]))
    index = source.train.index[[3, 0, 3]]
    np.testing.assert_array_equal(batch["index"], index)
    np.testing.assert_array_equal(batch["image"], content["train_images"][index])
    np.testing.assert_array_equal(batch["label"], content["train_labels"][index])


def test_train_examples_are_a_part_of_the_training_part(tmp_path: pathlib.Path) -> None:
    content = arrays(train=50)
    whole, some, fewer = (opened(tmp_path, content, train_examples=n) for n in (None, 20, 7))
    assert (len(some.train), len(fewer.train)) == (20, 7)
    assert set(fewer.train.index) < set(some.train.index) < set(whole.train.index)
    np.testing.assert_array_equal(some.eval.index, whole.eval.index)
    assert len(opened(tmp_path, content, train_examples=45).train) == 45


@pytest.mark.parametrize("count", [0, -1, 46])
def test_train_examples_that_are_not_there_are_refused(tmp_path: pathlib.Path, count: int) -> None:
    message = refused(tmp_path, arrays(train=50), train_examples=count)
    assert f"train_examples={count}" in message
    assert "expected 1 to 45" in message


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan"), float("inf"), 0.01, 0.99])
def test_an_eval_fraction_that_leaves_a_part_empty_is_refused(tmp_path: pathlib.Path, fraction: float) -> None:
    with pytest.raises(DataError, match=f"eval_fraction={fraction}: expected a number between 0 and 1"):
        opened(tmp_path, arrays(), eval_fraction=fraction)


def test_an_eval_fraction_beside_a_val_part_is_refused(tmp_path: pathlib.Path) -> None:
    message = refused(tmp_path, arrays(val=5), eval_fraction=0.1)
    assert "eval_fraction=0.1" in message
    assert "has its own evaluation part" in message


# --- images and labels ---


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_grey_images_without_a_channel_axis_get_one(tmp_path: pathlib.Path, dtype: Any) -> None:
    content = arrays()
    for prefix in ("train", "test"):
        grey = content[f"{prefix}_images"][..., 0]
        content[f"{prefix}_images"] = grey if dtype == np.uint8 else (grey / 256).astype(dtype)
    source = opened(tmp_path, content)
    assert source.image_shape == (8, 8, 1)
    assert source.train.images.dtype == (np.uint8 if dtype == np.uint8 else np.float32)


def test_classes_are_counted_from_the_training_labels(tmp_path: pathlib.Path) -> None:
    assert opened(tmp_path, arrays(classes=4)).classes == ("0", "1", "2", "3")
    named = arrays() | {"class_names": np.array(["cat", "dog", "owl", "none yet"])}
    assert opened(tmp_path, named).classes == ("cat", "dog", "owl", "none yet")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.bool_])
def test_whole_number_labels_are_classes(tmp_path: pathlib.Path, dtype: Any) -> None:
    content = arrays(classes=2)
    for prefix in ("train", "test"):
        content[f"{prefix}_labels"] = content[f"{prefix}_labels"].astype(dtype)
    source = opened(tmp_path, content)
    assert source.train.labels.dtype == np.int64
    assert source.classes == ("0", "1")


def test_a_loss_gets_the_outputs_it_needs(tmp_path: pathlib.Path) -> None:
    assert opened(tmp_path, arrays(classes=3)).outputs("softmax") == 3
    assert opened(tmp_path, arrays(classes=2)).outputs("sigmoid") == 1
    assert opened(tmp_path, arrays(classes=3)).outputs("mse") == 1
    with pytest.raises(DataError, match=r"the loss sigmoid needs labels 0 and 1.*these are 3 classes"):
        opened(tmp_path, arrays(classes=3)).outputs("sigmoid")
    targets = arrays(test=None) | {"train_labels": RNG.random(20)}
    assert opened(tmp_path, targets).outputs("mse") == 1
    assert opened(tmp_path, targets).classes == ()
    with pytest.raises(DataError, match="the loss softmax needs integer class labels, but these are float32 targets"):
        opened(tmp_path, targets).outputs("softmax")
    many = arrays(test=None) | {"train_labels": RNG.integers(0, 2, (20, 5))}
    assert opened(tmp_path, many).outputs("sigmoid") == opened(tmp_path, many).outputs("mse") == 5


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, np.float32])
def test_one_hot_labels_are_classes_where_the_loss_needs_them(tmp_path: pathlib.Path, dtype: Any) -> None:
    plain = arrays(val=5) | {"class_names": np.array(["cat", "dog", "owl"])}
    hot = {name: np.eye(3, dtype=dtype)[value] if "labels" in name else value for name, value in plain.items()}
    source, wanted = opened(tmp_path, hot), opened(tmp_path, plain)
    assert source.classes == ()  # for the loss sigmoid they are one label per column
    assert source.outputs("sigmoid") == 3
    converted = source.with_classes()
    assert converted.classes == converted.class_names == wanted.classes
    for part in ("train", "eval", "test"):
        np.testing.assert_array_equal(getattr(converted, part).labels, getattr(wanted, part).labels)
        assert getattr(converted, part).labels.dtype == np.int64
    assert wanted.with_classes() is wanted
    del hot["class_names"]
    assert opened(tmp_path, hot).with_classes().class_names is None


def test_a_column_of_whole_numbers_is_classes(tmp_path: pathlib.Path) -> None:
    column = {name: value[:, None] if "labels" in name else value for name, value in arrays().items()}
    np.testing.assert_array_equal(opened(tmp_path, column).train.labels, opened(tmp_path, arrays()).train.labels)


def test_labels_that_are_not_one_hot_are_named_with_the_way_out(tmp_path: pathlib.Path) -> None:
    hot = np.eye(3, dtype=np.int64)[np.arange(20) % 3]
    hot[7] = [1, 0, 1]
    source = opened(tmp_path, arrays(test=None) | {"train_labels": hot}, eval_fraction=0.05).with_classes()
    with pytest.raises(DataError, match=r"example \d of the \w+ part are \[1.0, 0.0, 1.0\]; the loss sigmoid takes"):
        source.outputs("softmax")


def test_labels_that_count_from_1_or_have_gaps_are_told(tmp_path: pathlib.Path) -> None:
    def told(labels: np.ndarray) -> str:
        lines: list[str] = []
        opened(tmp_path, arrays(test=None) | {"train_labels": labels}, say=lines.append)
        return "\n".join(lines)

    number = np.arange(20)
    assert told(number % 3) == ""
    assert "the labels count from 1 to 3, so class 0 ('0') has no training example" in told(number % 3 + 1)
    assert "subtract 1 from the labels" in told(number % 3 + 1)
    assert "19 of 21 classes without a training example: 1, 2, 3, 4, 5 and 14 more" in told(number % 2 * 20)
    named = arrays(test=None) | {"class_names": np.array(["a", "b", "c"]), "train_labels": number % 3 + 1}
    assert "train_labels[2]=3 is out of range" in refused(tmp_path, named)
    assert "the labels seem to count from 1: subtract 1 from them" in refused(tmp_path, named)


# --- what is refused ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": None}, "the file has no train_images; it has train_labels"),
        (
            {"train_images": None, "train_labels": None},
            "the file has no train_images and no train_labels; it has test_images",
        ),
        ({"test_labels": None}, "the file has no test_labels"),
        ({"test_images": None}, "the file has no test_images"),
        ({"val_images": pictures(3)}, "the file has no val_labels"),
        ({"train_labels": np.arange(19) % 3}, "train_labels has shape [19] for 20 images; expected [n] or [n, C]"),
        ({"test_labels": np.arange(7) % 3}, "test_labels has shape [7] for 6 images"),
        ({"train_labels": np.zeros((20, 2, 2))}, "train_labels has shape [20, 2, 2]"),
        ({"train_labels": np.zeros((20, 0))}, "train_labels has shape [20, 0]"),
        ({"train_labels": np.array(3)}, "train_labels has shape []"),
        (
            {"train_labels": np.array(["cat"] * 20)},
            "train_labels is <U3; expected integers (classes) or floats (targets)",
        ),
        ({"train_labels": np.arange(20) * 1e40}, "train_labels holds NaN or infinity"),
        ({"train_labels": np.full(20, np.nan)}, "train_labels holds NaN or infinity"),
        ({"train_labels": np.arange(20) % 3 - 1}, "train_labels[0]=-1 is out of range; the classes are 0 to 1"),
        ({"train_labels": np.arange(20) * 10_000}, "train_labels go up to 190000; expected classes from 0"),
        ({"test_labels": np.array([0, 1, 2, 3, 3, 0])}, "test_labels[3]=3 is out of range; the classes are 0 to 2 (2 "),
        ({"test_labels": np.arange(6) / 2}, "test_labels is float64 but train_labels is int64"),
        ({"class_names": np.array(["a", "b"])}, "train_labels[2]=2 is out of range; the classes are 0 to 1"),
        ({"class_names": np.array("a")}, "train_labels[1]=1 is out of range; the classes are 0 to 0"),
        ({"train_images": pictures(20, channels=2)}, "train_images has 2 channels; expected 1 or 3"),
        ({"train_images": pictures(20, channels=3)}, "test has images [6, 8, 8, 1]"),
        ({"train_images": pictures(20, size=9)}, "but train has [20, 9, 9, 1]"),
        ({"train_images": np.zeros((20, 64), np.uint8)}, "expected [n, height, width(, channels)]"),
        ({"train_images": np.zeros((0, 8, 8), np.uint8)}, "train_images has shape [0, 8, 8, 1]"),
        ({"train_images": np.zeros((20, 8, 8), np.int32)}, "train_images is int32; expected uint8, or float in [0, 1]"),
        ({"train_images": np.full((20, 8, 8), 1.01)}, "train_images is float, with values outside [0, 1]"),
        ({"train_images": np.full((20, 8, 8), -0.01)}, "train_images is float, with values outside [0, 1]"),
        ({"train_images": np.full((20, 8, 8), np.nan)}, "train_images is float, with values outside [0, 1]"),
        ({"train_images": np.array([object()] * 20)}, "pickled Python objects, which are never loaded"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_arrays_that_make_no_sense_are_refused_with_the_rule(
    tmp_path: pathlib.Path, change: dict[str, np.ndarray | None], message: str
) -> None:
    content = arrays() | change
    assert message in refused(tmp_path, {name: array for name, array in content.items() if array is not None})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("npz:", "expected one of"),
        ("", "expected one of"),
        ("ftp:somewhere", "expected one of"),
        ("npz:absent.npz", "absent.npz: there is no such file"),
    ],
)
def test_a_source_that_does_not_exist_is_refused(spec: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        open_data(spec)
    assert message in str(caught.value)


def test_a_truncated_file_is_refused(tmp_path: pathlib.Path) -> None:
    opened(tmp_path, arrays())
    path = tmp_path / "data.npz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"data\.npz: not an \.npz file, or truncated"):
        open_data(f"npz:{path}")
