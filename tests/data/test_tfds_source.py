"""``tfds:NAME``: data sets that the test builds with the package's own builder."""

from __future__ import annotations

import functools
import importlib.util
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from engine import data
from engine.data.named_weights import read_sample_weights
from engine.data.tfds_options import parse_tfds
from engine.errors import InputError

INSTALLED = importlib.util.find_spec("tensorflow_datasets") is not None
needs_package = pytest.mark.skipif(not INSTALLED, reason="the package tensorflow-datasets is not installed")


@functools.cache
def make_builder() -> Any:
    """The class of a data set "toy": 30 training and 10 test images, of which number n has the value 5 n."""
    import tensorflow_datasets as tfds

    class Toy(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.0")

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(shape=(8, 8, 1)),
                "label": tfds.features.ClassLabel(names=["ant", "bee", "cow"]),
                "age": np.int64,
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _: Any) -> Any:
            return {"train": self._generate_examples(0, 30), "test": self._generate_examples(30, 40)}

        def _generate_examples(self, start: int, stop: int) -> Any:
            for number in range(start, stop):
                image = np.full((8, 8, 1), 5 * number, np.uint8)
                yield number, {"image": image, "label": number % 3, "age": number}

    return Toy


@pytest.fixture(scope="module", params=["tfrecord", "array_record"])
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of the prepared data set."""
    folder = tmp_path_factory.mktemp(request.param)
    make_builder()(data_dir=folder, file_format=request.param).download_and_prepare()
    return folder


def opened(options: str, folder: pathlib.Path, **given: Any) -> data.Source:
    return data.open_data(f"tfds:{options},data_dir={folder}", **({"say": lambda line: None} | given))


def refused(options: str, folder: pathlib.Path) -> str:
    with pytest.raises(InputError) as caught:
        opened(options, folder)
    return str(caught.value)


@needs_package
def test_examples_are_read_by_position_and_every_label_is_that_of_its_image(prepared: pathlib.Path) -> None:
    source = opened("toy", prepared)
    assert (source.classes, source.image_shape, source.train.image_dtype) == (
        ("ant", "bee", "cow"),
        (8, 8, 1),
        np.uint8,
    )
    assert source.test is not None
    assert [len(part) for part in (source.train, source.eval, source.test)] == [27, 3, 10]
    numbers = []
    for part in (source.train, source.eval, source.test):
        batch = part.read(np.arange(len(part))[::-1])
        found = batch["image"][:, 0, 0, 0] // 5
        numbers += found.tolist()
        np.testing.assert_array_equal(found % 3, batch["label"])
    assert sorted(numbers) == list(range(40))
    assert opened("toy", prepared).fingerprint() == source.fingerprint()
    np.testing.assert_array_equal(
        opened("toy", prepared, image_cache=0).train.read([5, 2])["image"], source.train.read([5, 2])["image"]
    )


@needs_package
def test_splits_slices_labels_and_sizes_are_options(prepared: pathlib.Path) -> None:
    source = opened("toy:1.*.*,split=train[:20]+test,eval=train[20:]", prepared)
    assert (len(source.train), len(source.eval), source.test) == (30, 10, None)
    assert opened("toy", prepared, image_size=(4, 6)).image_shape == (4, 6, 1)
    amounts = opened("toy,label=age:number", prepared)
    assert (amounts.classes, amounts.train.labels.dtype) == ((), np.float32)
    assert opened("toy,label=age:class", prepared).named is False


@needs_package
def test_what_is_not_there_is_named_and_nothing_is_downloaded(prepared: pathlib.Path) -> None:
    error = refused("tooy", prepared)
    assert "the data set is not prepared in" in error
    assert "nearest: toy, and nothing is downloaded; prepare it, which needs a network, by python -c" in error
    assert "version 2.0.0 is not prepared in" in refused("toy:2.0.0", prepared)
    assert "there is no feature lable; nearest: label" in refused("toy,label=lable", prepared)
    assert "label=age:class if they are classes" in refused("toy,label=age", prepared)
    assert "image=label: there is no such image" in refused("toy,image=label", prepared)
    assert "have examples in common" in refused("toy,split=train[:50%],eval=train[40%:]", prepared)
    assert "split 'trin' is not valid" in refused("toy,split=trin", prepared)


@needs_package
def test_a_description_that_names_code_from_elsewhere_is_refused(
    prepared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    import shutil

    shutil.copytree(prepared / "toy", tmp_path / "toy")
    path = tmp_path / "toy/1.2.0/features.json"
    found = json.loads(path.read_text())
    found["pythonClassName"] = "evil.Features"
    path.write_text(json.dumps(found))
    assert "features.json names evil.Features, which is not of tensorflow_datasets" in refused("toy", tmp_path)


@pytest.mark.skipif(INSTALLED, reason="the package tensorflow-datasets is installed")
def test_without_the_package_the_extra_is_named(tmp_path: pathlib.Path) -> None:
    assert "needs the package tensorflow-datasets: pip install 'frostline[tfds]'" in refused("toy", tmp_path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tfds:../x", "expected tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:VERSION, such as tfds:mnist:3.0.1"),
        ("tfds:mnist:3", "expected tfds:NAME"),
        ("tfds:mnist,spilt=train", "`spilt` is not an option; expected one of split, eval, test, image, label, data_dir; nearest: split"),
        ("tfds:mnist,split=", "`split=` has no value"),
        ("tfds:mnist,split=a,split=b", "split is given twice"),
        ("tfds:mnist,label=a:float", "expected :class or :number"),
    ],
)  # fmt: skip
def test_names_that_are_not_valid_are_refused_without_the_package(spec: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        data.open_data(spec)
    assert message in str(caught.value)
    assert parse_tfds("tfds:coco/2017:1.1.0,split=train[:1%],label=objects").name == "coco/2017"


def test_two_splits_that_could_be_the_evaluation_part_are_asked_about() -> None:
    from engine.data.tfds import _choose_splits

    def choose(options: str, *names: str, to_train: bool = True) -> dict[str, str]:
        return _choose_splits("data=tfds:a", parse_tfds(f"tfds:a{options}"), names, to_train=to_train)

    with pytest.raises(
        InputError, match=r"validation and dev could each be the evaluation part; eval= says which: eval=validation"
    ):
        choose("", "train", "validation", "dev")
    assert choose(",eval=dev", "train", "validation", "dev")["val"] == "dev"
    assert choose("", "train", "dev", "test") == {"train": "train", "val": "dev", "test": "test"}
    with pytest.raises(InputError, match="there is no split train; split= says what to train on: test"):
        choose("", "test")
    assert choose("", "test", to_train=False) == {"test": "test"}


@needs_package
def test_examples_are_numbered_for_their_weights(prepared: pathlib.Path, tmp_path: pathlib.Path) -> None:
    train = opened("toy", prepared).train
    (tmp_path / "w.csv").write_text("0,2\n29,0.5")
    weights, _ = read_sample_weights(tmp_path / "w.csv", train)
    np.testing.assert_array_equal(weights, np.where(train.index == 0, 2, np.where(train.index == 29, 0.5, 1)))
