"""A head is loaded for the classes that it was trained for: matched by name, or anew, or refused; never shifted."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest

from engine.data.class_names import as_texts, read_class_names
from engine.errors import InputError
from engine.files import FileError, Npz, write_npz
from engine.porting import PortError
from engine.porting.class_order import WAY_OUT
from engine.recipes.task import Task
from engine.selection.variables import name_variables

RNG = np.random.default_rng(0)
ANIMALS = ("cat", "dog", "owl")


def write_data(path: pathlib.Path, names: tuple[str, ...] | None, count: int | None = None) -> str:
    """Data with these classes, or with so many that have no names."""
    labels = np.arange(24) % (count or len(names or ()))
    arrays = {"train_images": RNG.integers(0, 256, (24, 8, 8, 1), np.uint8), "train_labels": labels}
    np.savez(path, **arrays, **({} if names is None else {"class_names": np.array(names)}))  # type: ignore[arg-type]
    return f"npz:{path}"


def opened(folder: pathlib.Path, names: tuple[str, ...] | None, *, count: int | None = None, **options: Any) -> Task:
    data = write_data(folder / "data.npz", names, count)
    return Task.open(**({"data": data, "model": "cnn:mini", "weights": None, "batch_size": 8} | options))


def saved(
    folder: pathlib.Path, names: tuple[str, ...] | None, *, slots: bool = False, **options: Any
) -> tuple[pathlib.Path, Any]:
    """A weights file as a run of these classes writes it, and its arrays."""
    from engine.runs import records
    from engine.selection.selection import select

    task = opened(folder, names, seed=1, **options)
    for entry in task.variables:
        entry.variable.assign(RNG.standard_normal(entry.variable.shape))
    path = folder / "weights.npz"
    records.write_trained(path, task.variables, [select(task.variables, "@all")], class_names=task.class_names)
    with Npz(path) as file:
        return path, {name: file.read(name) for name in file.names()}


def head(task: Task) -> tuple[np.ndarray, np.ndarray]:
    values = task.variables.by_path()
    return values["head/kernel"].variable.numpy(), values["head/bias"].variable.numpy()


def text(task: Task) -> str:
    assert task.weights is not None
    return task.weights.text


def test_the_same_classes_load_in_silence_and_the_file_names_them(tmp_path: pathlib.Path) -> None:
    path, arrays = saved(tmp_path, ANIMALS)
    assert read_class_names(path) == ANIMALS
    task = opened(tmp_path, ANIMALS).with_weights(path)
    assert text(task) == "weights.npz, 22 variables loaded by frostline.rules"
    np.testing.assert_array_equal(head(task)[0], arrays["head/kernel"])


def test_a_renamed_class_reorders_the_head_and_starts_alone_anew(tmp_path: pathlib.Path) -> None:
    path, arrays = saved(tmp_path, ANIMALS)  # cat, dog, owl; then cat is called a "tiger", and comes last
    task = opened(tmp_path, ("dog", "owl", "tiger"))
    fresh = head(task)
    task = task.with_weights(path)
    for made, before, initial in zip(head(task), (arrays["head/kernel"], arrays["head/bias"]), fresh, strict=True):
        np.testing.assert_array_equal(made[..., :2], before[..., 1:])
        np.testing.assert_array_equal(made[..., 2], initial[..., 2])
    assert "matched by name; tiger starts anew; the data do not have cat" in text(task)


def test_another_order_another_number_and_accents_are_matched(tmp_path: pathlib.Path) -> None:
    path, arrays = saved(tmp_path, ("caf\u00e9", "dog", "owl"))
    task = opened(tmp_path, ("owl", "cafe\u0301", "dog")).with_weights(path)
    np.testing.assert_array_equal(head(task)[0], arrays["head/kernel"][:, [2, 0, 1]])
    assert "matched by name, since their order differs" in text(task)
    task = opened(tmp_path, ("owl", "dog")).with_weights(path)
    np.testing.assert_array_equal(head(task)[1], arrays["head/bias"][[2, 1]])
    task = opened(tmp_path, ("bee", "caf\u00e9", "dog", "owl")).with_weights(path)
    np.testing.assert_array_equal(head(task)[0][:, 1:], arrays["head/kernel"])
    task = opened(tmp_path, ("bee", "caf\u00e9", "dog", "owl"), model="cnn:mini,classes=6").with_weights(path)
    np.testing.assert_array_equal(head(task)[0][:, 1:4], arrays["head/kernel"])


def test_other_classes_start_anew_although_their_number_is_the_same(tmp_path: pathlib.Path) -> None:
    path, arrays = saved(tmp_path, ANIMALS)
    task = opened(tmp_path, ("bus", "car", "van"))
    fresh = head(task)
    task = task.with_weights(path)
    np.testing.assert_array_equal(head(task)[0], fresh[0])
    assert "fresh: head/kernel, head/bias; the head starts anew, since its classes (cat, dog and owl)" in text(task)
    body = task.variables.by_path()["stages/0/conv/kernel"].variable.numpy()
    np.testing.assert_array_equal(body, arrays["stages/0/conv/kernel"])


def test_names_that_are_not_known_are_told(tmp_path: pathlib.Path) -> None:
    named, arrays = saved(tmp_path, ANIMALS)
    task = opened(tmp_path, None, count=3).with_weights(named)
    np.testing.assert_array_equal(head(task)[0], arrays["head/kernel"])
    assert "the data do not name their classes, so the head for cat, dog and owl is taken as it is" in text(task)
    unnamed, arrays = saved(tmp_path, None, count=3)
    assert read_class_names(unnamed) is None
    task = opened(tmp_path, ("owl", "bee", "cat")).with_weights(unnamed)
    np.testing.assert_array_equal(head(task)[0], arrays["head/kernel"])
    assert "the file does not name its classes, so its head is taken for owl, bee and cat, in this order" in text(task)
    task = opened(tmp_path, None, count=4).with_weights(unnamed)
    assert "fresh: head/kernel" in text(task)


def test_a_single_output_that_says_the_opposite_changes_its_sign(tmp_path: pathlib.Path) -> None:
    path, arrays = saved(tmp_path, ("cat", "dog"), loss="sigmoid")
    task = opened(tmp_path, ("dog", "cat"), loss="sigmoid").with_weights(path)
    for made, before in zip(head(task), (arrays["head/kernel"], arrays["head/bias"]), strict=True):
        np.testing.assert_array_equal(made, -before)
    assert "changes its sign, since it stood for dog, not cat" in text(task)
    assert "starts anew" in text(opened(tmp_path, ("cat", "wolf"), loss="sigmoid").with_weights(path))


def test_slots_follow_their_classes_or_are_left_out(tmp_path: pathlib.Path) -> None:
    path, arrays = saved(tmp_path, ANIMALS)
    slots = {f"optimizer/{name}/m": arrays[name] * 2 for name in ("head/kernel", "head/bias")}
    slots["optimizer/head/bias/t"] = np.asarray(5)
    write_npz(path, (arrays | slots).items(), texts=as_texts(ANIMALS))

    def seen(names: tuple[str, ...]) -> dict[str, np.ndarray]:
        task = opened(tmp_path, names).with_weights(path)
        assert task.weights is not None
        assert task.weights.classes is not None
        with Npz(path) as file:
            view = task.weights.classes.view(file)
            return {name: view.read(name) for name in view.names() if name.startswith("optimizer/")}

    found = seen(("dog", "owl", "cat"))
    np.testing.assert_array_equal(found["optimizer/head/kernel/m"], slots["optimizer/head/kernel/m"][:, [1, 2, 0]])
    assert found["optimizer/head/bias/t"] == 5
    assert seen(("dog", "owl", "tiger")) == {}


def test_classes_that_cannot_be_matched_are_an_error_with_a_way_out(tmp_path: pathlib.Path) -> None:
    path, arrays = saved(tmp_path, ANIMALS)
    other = opened(tmp_path, ("dog", "cat", "owl"))
    rules = tmp_path / "my.rules"
    rules.write_text("(.*) <- \\1")
    with pytest.raises(PortError, match=r"add the line `fresh head/\.\*`"):
        other.with_weights(path, rules=rules)
    rules.write_text("\n".join(re.findall("`(.*?)`", WAY_OUT)))  # as the message says
    other.with_weights(path, rules=rules)
    for names in (("cat", "dog", "owl", "bee"), ("cat", "cat", "owl")):
        write_npz(path, arrays.items(), texts={"class_names.json": json.dumps(names)})
        with pytest.raises(PortError, match="starts the head anew"):
            other.with_weights(path)
    for damaged in ("", "{}", "[1]", "[]", "[" * 100_000):
        write_npz(path, arrays.items(), texts={"class_names.json": damaged})
        with pytest.raises((PortError, FileError), match="expected a JSON list of names"):
            other.with_weights(path)


def test_a_head_of_several_layers_is_matched_in_its_last(tmp_path: pathlib.Path) -> None:
    factory = tmp_path / "heads_of_two_layers.py"
    factory.write_text(
        "import keras\n"
        "def net(image_shape, outputs):\n"
        "    x = image = keras.Input(image_shape)\n"
        "    x = keras.layers.Flatten()(x)\n"
        "    head = keras.Sequential([keras.layers.Dense(3, name='hidden', activation='tanh'),\n"
        "                             keras.layers.Dense(outputs, name='logits')], name='head')\n"
        "    return keras.Model(image, head(x))\n"
        "def mixed(image_shape, outputs):\n"
        "    image = keras.Input(image_shape)\n"
        "    x = keras.layers.Dense(outputs, name='first')(keras.layers.Flatten()(image))\n"
        "    x = keras.layers.Dense(4, name='between')(x)\n"
        "    head = keras.Sequential([keras.layers.Dense(outputs, name='a'), keras.layers.Softmax(),\n"
        "                             keras.layers.Dense(outputs, name='b'), keras.layers.LayerNormalization(name='c')],"
        " name='head')\n"
        "    return keras.Model(image, head(x))\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        given = {"model": "py:heads_of_two_layers:net"}
        path, arrays = saved(tmp_path, ANIMALS, **given)
        task = opened(tmp_path, ("owl", "cat", "dog"), **given).with_weights(path)
        after = {entry.path: entry.variable.numpy() for entry in task.variables}
        for name, value in arrays.items():
            np.testing.assert_array_equal(after[name], value[..., [2, 0, 1]] if "logits" in name else value)
        given = {"model": "py:heads_of_two_layers:mixed"}
        path, _ = saved(tmp_path, ANIMALS, **given)
        with pytest.raises(PortError, match="which weights of the head belong to which class"):
            opened(tmp_path, ("owl", "cat", "dog"), **given).with_weights(path)


def test_a_head_of_another_shape_for_other_classes_starts_anew_as_a_whole(tmp_path: pathlib.Path) -> None:
    path, arrays = saved(tmp_path, ANIMALS)
    arrays["head/kernel"] = arrays["head/kernel"][:-1]
    write_npz(path, arrays.items(), texts=as_texts(ANIMALS))
    task = opened(tmp_path, ("owl", "cat", "dog"))
    fresh = head(task)
    task = task.with_weights(path)
    assert "has other shapes" in text(task)
    for made, initial in zip(head(task), fresh, strict=True):
        np.testing.assert_array_equal(made, initial)


def test_a_runs_files_name_its_classes_and_a_run_on_a_renamed_folder_says_what_became_of_them(
    call: Any, tmp_path: pathlib.Path
) -> None:
    flags = [
        "--model=cnn:mini",
        "--train=@head",
        "--steps=1",
        "--batch_size=8",
        "--keep_best",
        "--cache=off",
        "--ema=0.5",
    ]
    data = write_data(tmp_path / "a.npz", ANIMALS)
    assert call(*flags, f"--data={data}", "--weights=none", f"--out={tmp_path / 'a'}")[0] == 0
    files = [tmp_path / "a" / name for name in ("trained.npz", "ema.npz", "checkpoints/best.npz")]
    assert [read_class_names(file) for file in files] == [ANIMALS] * 3
    other = write_data(tmp_path / "b.npz", ("dog", "owl", "tiger"))
    best = tmp_path / "a/checkpoints/best.npz"
    code, printed, error = call(*flags, f"--data={other}", f"--weights={best}", f"--out={tmp_path / 'b'}")
    assert code == 0, error
    assert "tiger starts anew; the data do not have cat" in printed


def test_load_weights_matches_classes_or_says_whose_order_it_took(tmp_path: pathlib.Path) -> None:
    from engine import build_model, load_weights

    path, arrays = saved(tmp_path, ANIMALS)
    model = build_model("cnn:mini", image_shape=(8, 8, 1), outputs=3)
    kernel = name_variables(model.network).by_path()["head/kernel"].variable
    taken = load_weights(model, path)
    assert taken.text.endswith(
        "; its head is for cat, dog and owl, in this order; classes= matches it with those of the data"
    )
    np.testing.assert_array_equal(kernel.numpy(), arrays["head/kernel"])
    given: dict[str, Any] = {"image_shape": (8, 8, 1)}
    model = build_model("cnn:mini", image_shape=(8, 8, 1), outputs=3)
    matched = load_weights(model, path, classes=("owl", "cat", "dog"), **given)
    assert "matched by name, since their order differs" in matched.text
    kernel = name_variables(model.network).by_path()["head/kernel"].variable.numpy()
    np.testing.assert_array_equal(kernel, arrays["head/kernel"][..., [2, 0, 1]])
    bare = build_model("cnn:mini", image_shape=(8, 8, 1), outputs=3).network
    assert "matched by name" in load_weights(bare, path, classes=("owl", "cat", "dog"), **given).text
    with pytest.raises(InputError, match="image_shape=None: expected"):
        load_weights(bare, path, classes=ANIMALS)
    nameless = tmp_path / "nameless.npz"
    np.savez(nameless, **{name: array for name, array in arrays.items() if not name.startswith("optimizer/")})
    said = load_weights(model, nameless, classes=ANIMALS, **given).text
    assert said.endswith("the file does not name its classes, so its head is taken for cat, dog and owl, in this order")


def test_a_saved_model_that_keeps_its_head_says_that_its_order_cannot_be_checked(tmp_path: pathlib.Path) -> None:
    import zipfile

    import keras

    path = tmp_path / "m.keras"
    layers = [keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3, activation="relu"), keras.layers.Flatten()]
    keras.Sequential([*layers, keras.layers.Dense(3)]).save(path)
    given: dict[str, Any] = {"model": f"file:{path},preprocess=unit", "weights": "auto"}
    said = (
        "m.keras does not name its classes, so its own head is taken for cat, dog and owl, in this order; whether it is"
    )
    assert said in text(opened(tmp_path, ANIMALS, **given))
    assert "so its own head is taken as it is" in text(opened(tmp_path, None, count=3, **given))
    assert "own head" not in text(opened(tmp_path, ANIMALS, head="gap", **given))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("class_names.json", json.dumps(["owl", "cat", "dog"]))
    with pytest.raises(
        PortError, match=r"its head is for owl, cat and dog, the data have cat, dog and owl; --head=gap"
    ):
        opened(tmp_path, ANIMALS, **given)
    assert "own head" not in text(opened(tmp_path, ("owl", "cat", "dog"), **given))
