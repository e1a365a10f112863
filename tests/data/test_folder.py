"""Image folders: layouts, which file is in which part, what is left out, and what is an error."""

from __future__ import annotations

import os
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from engine import data
from engine.data import folder as folder_module
from engine.data import image_files
from engine.data.image_files import printable
from engine.data.loading import load_images, unloaded_bytes

SMALL = (12, 12)


def opened(folder: pathlib.Path, **options: Any) -> data.Source:
    return data.open_data(f"folder:{folder}", **({"image_size": SMALL} | options))


def names_of(source: data.Source, part: data.Part) -> set[str]:
    return {source.train.images._names[number] for number in part.index}  # type: ignore[attr-defined]


def refused(folder: pathlib.Path | str, **options: Any) -> str:
    with pytest.raises(data.DataError) as caught:
        opened(pathlib.Path(folder), **options)
    return str(caught.value)


# ---- layouts
def test_a_folder_with_train_val_and_test_has_these_parts_and_sorted_classes(make_folder: Any) -> None:
    counts = {"train/dog": 4, "train/cat": 3, "val/cat": 2, "val/dog": 1, "test/dog": 2}
    source = opened(make_folder(counts))
    assert source.classes == ("cat", "dog")
    assert source.test is not None
    assert [len(part) for part in (source.train, source.eval, source.test)] == [7, 3, 2]
    assert [part.labels.tolist() for part in (source.train, source.eval, source.test)] == [
        [0, 0, 0, 1, 1, 1, 1],
        [0, 0, 1],
        [1, 1],
    ]
    every = np.concatenate([part.index for part in (source.train, source.eval, source.test)])
    assert sorted(every) == list(range(12)), "each image has one number, whatever its part"
    assert source.image_shape == (*SMALL, 3)


def test_a_folder_of_classes_holds_out_an_evaluation_part_of_about_the_share(make_folder: Any) -> None:
    folder = make_folder({"a": 300, "b": 300})
    for share in (0.1, 0.3):
        source = opened(folder, eval_fraction=share)
        assert source.test is None
        assert len(source.train) + len(source.eval) == 600
        assert not set(source.train.index) & set(source.eval.index)
        assert 0.5 * share < len(source.eval) / 600 < 1.5 * share
    assert len(opened(folder).eval) == len(opened(folder, eval_fraction=0.1).eval)


def test_a_train_folder_without_val_holds_out_by_name_too(make_folder: Any) -> None:
    source = opened(make_folder({"train/a": 40, "train/b": 40, "test/a": 3, "test/b": 3}))
    assert len(source.train) + len(source.eval) == 80
    assert 0 < len(source.eval) < 20
    assert source.test is not None
    assert len(source.test) == 6


@settings(max_examples=30, deadline=None)
@given(st.sets(st.text("abcxyz019_- ", min_size=1, max_size=8), min_size=2, max_size=20), st.text("qr", min_size=1))
def test_a_file_is_held_out_by_its_own_name_alone(names: set[str], new: str) -> None:
    before = {name: folder_module._share("train", "cat", f"cat/{name}.jpg") for name in names}
    after = {name: folder_module._share("train", "cat", f"cat/{name}.jpg") for name in names | {new}}
    assert before == {name: after[name] for name in names}
    assert before == {name: folder_module._share("train", "cat", f"train/cat/{name}.jpg") for name in names}
    assert all(0 <= share < 1 for share in before.values())


def test_adding_and_removing_files_moves_no_other_file_between_the_parts(
    make_folder: Any, tmp_path: pathlib.Path
) -> None:
    folder = make_folder({"a": 60, "b": 60})
    first = opened(folder, eval_fraction=0.2)
    train, held = names_of(first, first.train), names_of(first, first.eval)
    for number in range(40):
        shutil.copy(folder / "a/000.png", folder / f"a/new{number}.png")
    (folder / "b/017.png").unlink()
    second = opened(folder, eval_fraction=0.2)
    assert (train & names_of(second, second.eval)) == set()
    assert (held & names_of(second, second.train)) == set()
    assert len(second.train) + len(second.eval) == 159


def test_images_in_folders_of_a_class_folder_belong_to_the_class(make_folder: Any) -> None:
    source = opened(make_folder({"a": 2, "a/2023/summer": 3, "b": 30}), eval_fraction=0.3)
    labels = np.concatenate([source.train.labels, source.eval.labels])
    assert np.bincount(labels).tolist() == [5, 30]


# ---- what is left out
def test_hidden_files_and_other_suffixes_are_left_out_and_counted(make_folder: Any, capsys: Any) -> None:
    folder = make_folder({"train/a": 3, "train/b": 3, "val/a": 1, "__MACOSX/a": 2, ".git/x": 2, "masks/a": 1})
    for name in ("a/._000.png", "a/.DS_Store", "a/notes.txt", "b/Thumbs.db", "b/more.txt", "b/README"):
        (folder / "train" / name).write_bytes(b"no image")
    shutil.copy(folder / "train/a/000.png", folder / "train/stray.png")
    lines: list[str] = []
    source = opened(folder, say=lines.append)
    assert (len(source.train), source.classes) == (6, ("a", "b"))
    assert lines == [
        "data: left out: .db files (1), .txt files (2), files without a suffix (1), folder masks next to train (1), "
        "hidden files (2), images outside of class folders (1)"
    ]
    assert source.skipped == ()


def test_links_that_lead_back_or_into_other_classes_end_and_bring_nothing(make_folder: Any) -> None:
    folder = make_folder({"train/a": 3, "train/b": 4, "val/a": 1})
    for number, target in enumerate(["..", "../..", "../b", ".", str(folder.parent), "/"]):
        (folder / f"train/a/link{number}").symlink_to(target)
    (folder / "train/a/self").symlink_to("self")
    (folder / "train/a/mutual1").symlink_to("mutual2")
    (folder / "train/a/mutual2").symlink_to("mutual1")
    assert np.bincount(opened(folder).train.labels).tolist() == [3, 4]


def test_a_link_to_a_folder_elsewhere_is_followed(make_folder: Any) -> None:
    elsewhere = make_folder({"pictures": 5}, name="elsewhere")
    folder = make_folder({"train/a": 1, "train/b": 2, "val/b": 1})
    (folder / "train/a/more").symlink_to(elsewhere / "pictures")
    assert np.bincount(opened(folder).train.labels).tolist() == [6, 2]


# ---- reading
def test_any_size_and_kind_comes_out_as_rgb_of_one_size(make_folder: Any, photo: Image.Image) -> None:
    folder = make_folder({"train/a": 1, "train/b": 1, "val/a": 1})
    photo.save(folder / "train/b/wide.JPG")
    photo.convert("L").resize((7, 200)).save(folder / "train/b/tall grey.jpeg")
    photo.convert("RGBA").save(folder / "train/b/alpha.PNG")
    photo.convert("P").save(folder / "train/b/palette.gif")
    photo.save(folder / "train/b/x.bmp")
    photo.save(folder / "train/b/really_a_jpeg.png", "JPEG")
    batch = opened(folder, image_size=(30, 40)).train.read(np.arange(8))
    assert batch["image"].shape == (8, 30, 40, 3)
    assert batch["image"].dtype == np.uint8
    assert batch["label"].tolist() == [0] + [1] * 7


def test_the_order_of_reading_and_the_cache_change_no_bit(make_folder: Any) -> None:
    folder = make_folder({"train/a": 20, "train/b": 20, "val/a": 2}, suffix=".jpg")
    each = SMALL[0] * SMALL[1] * 3
    kept, some, none = (opened(folder, image_cache=size) for size in (1 << 20, 17 * each + 1, 0))
    assert [source.train.images.kept for source in (kept, some, none)] == [42, 17, 0]  # type: ignore[attr-defined]
    assert kept.fingerprint() == some.fingerprint() == none.fingerprint()
    straight = kept.train.read(np.arange(40))
    mixed = np.random.default_rng(0).permutation(40)
    for source in (kept, some, none):
        np.testing.assert_array_equal(source.train.read(mixed)["image"], straight["image"][mixed])
        np.testing.assert_array_equal(source.train.read(mixed)["index"], straight["index"][mixed])
        np.testing.assert_array_equal(source.train.read(np.array([3, 3]))["image"][1], straight["image"][3])


def test_a_batch_is_a_pure_function_of_its_number(make_folder: Any) -> None:
    folder = make_folder({"train/a": 10, "train/b": 13, "val/a": 2})
    one = data.TrainBatches(opened(folder).train, batch_size=5, seed=3, augment=("flip", "crop"))
    other = data.TrainBatches(opened(folder, image_cache=0).train, batch_size=5, seed=3, augment=("flip", "crop"))
    wanted = {step: one.at(step) for step in range(12)}
    for step in (11, 4, 0, 7):
        for name, value in other.at(step).items():
            np.testing.assert_array_equal(value, wanted[step][name])
    for step, batch in zip(range(3, 9), other.between(3, 9), strict=True):
        np.testing.assert_array_equal(batch["image"], wanted[step]["image"])


def test_the_fingerprint_tells_a_changed_a_renamed_and_a_new_file(make_folder: Any) -> None:
    folder = make_folder({"train/a": 3, "train/b": 3, "val/a": 2})
    seen = [opened(folder).fingerprint(), opened(folder, image_size=(9, 12)).fingerprint()]
    shutil.copy(folder / "train/a/001.png", folder / "train/a/000.png")
    seen.append(opened(folder).fingerprint())
    (folder / "train/a/000.png").rename(folder / "train/a/0000.png")
    seen.append(opened(folder).fingerprint())
    shutil.copy(folder / "train/a/001.png", folder / "val/a/new.png")
    seen.append(opened(folder).fingerprint())
    assert len(set(seen)) == 5
    os.utime(folder / "train/a/001.png", (1, 1))
    assert opened(folder).fingerprint() == seen[-1], "a copy of the folder is the same data"


def test_train_examples_takes_a_fixed_choice(make_folder: Any) -> None:
    folder = make_folder({"train/a": 10, "train/b": 10, "val/a": 2})
    one, other = opened(folder, train_examples=7), opened(folder, train_examples=7, image_cache=0)
    assert len(one.train) == 7
    np.testing.assert_array_equal(one.train.index, other.train.index)
    assert one.train.labels.tolist() == [int(i >= 10) for i in one.train.index]


# ---- images that cannot be read
BAD = {
    "train/a/empty.jpg": b"",
    "train/a/page.jpg": b"<!DOCTYPE html><html>Not found</html>",
    "train/b/lfs.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
}


@pytest.fixture
def damaged(make_folder: Any, photo: Image.Image) -> pathlib.Path:
    folder: pathlib.Path = make_folder({"train/a": 5, "train/b": 5, "val/a": 2, "val/b": 2})
    for name, content in BAD.items():
        (folder / name).write_bytes(content)
    photo.save(folder / "val/b/cut.jpg")
    whole = (folder / "val/b/cut.jpg").read_bytes()
    (folder / "val/b/cut.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


def test_images_that_cannot_be_read_stop_and_are_named_with_the_reason(damaged: pathlib.Path) -> None:
    error = refused(damaged)
    assert "4 of 18 images cannot be read (--bad_images=skip leaves them out)" in error
    assert "train/a/empty.jpg: the file is empty" in error
    assert "train/a/page.jpg: not a JPEG, PNG, GIF or BMP; the file begins with '<!DOCTYPE html>" in error
    assert "train/b/lfs.png: not a JPEG" in error
    assert "val/b/cut.jpg: a damaged or truncated JPEG" in error


def harmed(path: pathlib.Path) -> None:
    """Damages the pixels of an image file, but neither its header nor its end."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle - 20 : middle + 20] = bytes(40)
    path.write_bytes(content)


def test_opening_decodes_nothing_and_each_image_is_decoded_once_when_it_is_read(
    make_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder({"train/a": 6, "train/b": 6, "val/a": 4}, suffix=".jpg")
    decoded: list[int] = []
    decode = image_files.decode
    monkeypatch.setattr(image_files, "decode", lambda data, size: decoded.append(1) or decode(data, size))
    source = opened(folder)
    source.fingerprint()
    assert (len(source.train), source.classes, source.image_shape) == (12, ("a", "b"), (*SMALL, 3))
    assert decoded == []
    assert unloaded_bytes([source.train, source.eval]) == 16 * SMALL[0] * SMALL[1] * 3
    source.train.read(np.array([1, 5, 7]))
    source.train.read(np.array([5, 7]))
    assert len(decoded) == 3
    load_images([source.train])
    assert len(decoded) == 12
    load_images([source.train, source.eval])
    assert len(decoded) == 16
    assert unloaded_bytes([source.train, source.eval]) == 0
    source.eval.read(np.arange(4))
    assert len(decoded) == 16
    opened(folder, bad_images="skip")
    assert len(decoded) == 32, "which images are left out decides the examples"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".bmp"])
def test_files_that_are_cut_off_are_named_when_the_folder_is_opened(make_folder: Any, suffix: str) -> None:
    folder = make_folder({"train/a": 2, "train/b": 2, "val/a": 2}, suffix=suffix)
    for name in ("train/a/001", "val/a/000"):
        whole = (folder / f"{name}{suffix}").read_bytes()
        (folder / f"{name}{suffix}").write_bytes(whole[: 2 * len(whole) // 3])
    error = refused(folder)
    assert "2 of 6 images cannot be read" in error
    assert f"train/a/001{suffix}: a " in error
    assert f"val/a/000{suffix}: a " in error


def test_loading_names_every_damaged_image_of_its_parts_at_once(make_folder: Any) -> None:
    folder = make_folder({"train/a": 3, "train/b": 3, "val/a": 2, "test/a": 2})
    for name in ("train/a/001", "train/b/002", "val/a/000", "test/a/001"):
        harmed(folder / f"{name}.png")
    source = opened(folder)
    with pytest.raises(data.DataError) as caught:
        load_images([source.train, source.eval])
    assert "3 of 10 images cannot be read (--bad_images=skip leaves them out)" in str(caught.value)
    assert all(f"{name}.png: a damaged or truncated PNG" in str(caught.value) for name in ("train/b/002", "val/a/000"))
    assert source.test is not None
    with pytest.raises(data.DataError, match=r"4 of 10 images cannot be read .*(\n.*)*test/a/001\.png: a damaged"):
        source.test.read(np.arange(2))
    skipping = opened(folder, bad_images="skip")
    load_images([skipping.train, skipping.eval])
    assert len(skipping.skipped) == 4


def test_without_memory_for_images_the_headers_are_checked_and_the_rest_when_it_is_read(damaged: pathlib.Path) -> None:
    assert "3 of 18 images cannot be read" in refused(damaged, image_cache=0)
    for name in BAD:
        (damaged / name).unlink()
    source = opened(damaged, image_cache=0)
    with pytest.raises(data.DataError, match=r"val/b/cut\.jpg: a damaged or truncated JPEG"):
        source.eval.read(np.arange(len(source.eval)))


@pytest.mark.parametrize("cache", [1 << 20, 0])
def test_skipping_leaves_bad_images_out_and_names_them(damaged: pathlib.Path, cache: int) -> None:
    source = opened(damaged, bad_images="skip", image_cache=cache)
    assert source.skipped == ("train/a/empty.jpg", "train/a/page.jpg", "train/b/lfs.png", "val/b/cut.jpg")
    assert (len(source.train), len(source.eval)) == (10, 4)
    good = opened(damaged, bad_images="skip")
    assert source.fingerprint() == good.fingerprint()
    np.testing.assert_array_equal(source.train.read(np.arange(10))["image"], good.train.read(np.arange(10))["image"])


def test_the_order_among_good_images_is_the_same_as_if_the_bad_ones_were_not_there(damaged: pathlib.Path) -> None:
    with_bad = opened(damaged, bad_images="skip")
    images = with_bad.train.read(np.arange(10))["image"]
    for name in (*BAD, "val/b/cut.jpg"):
        (damaged / name).unlink()
    np.testing.assert_array_equal(opened(damaged).train.read(np.arange(10))["image"], images)


def test_a_pipe_or_a_dangling_link_is_a_bad_image_and_does_not_hang(make_folder: Any) -> None:
    folder = make_folder({"train/a": 2, "train/b": 2, "val/a": 1})
    os.mkfifo(folder / "train/a/pipe.jpg")
    (folder / "train/b/gone.jpg").symlink_to("nowhere.jpg")
    error = refused(folder)
    assert "train/a/pipe.jpg: not a regular file" in error
    assert "train/b/gone.jpg: cannot be opened (No such file or directory)" in error
    assert len(opened(folder, bad_images="skip").train) == 4


def test_a_file_that_vanishes_during_the_run_is_named(make_folder: Any) -> None:
    folder = make_folder({"train/a": 2, "train/b": 2, "val/a": 1})
    source = opened(folder, image_cache=0)
    (folder / "train/b/001.png").unlink()
    batches = data.TrainBatches(source.train, batch_size=4)
    with pytest.raises(data.DataError, match=r"train/b/001\.png: cannot be opened"):
        list(batches.between(0, 1))


def test_a_class_or_a_part_whose_images_are_all_bad_is_an_error_though_bad_ones_are_skipped(make_folder: Any) -> None:
    folder = make_folder({"train/a": 2, "train/b": 2, "val/a": 1})
    (folder / "val/a/000.png").write_bytes(b"")
    assert "val has no readable image" in refused(folder, bad_images="skip")
    shutil.copy(folder / "train/a/000.png", folder / "val/a/000.png")
    for name in ("000", "001"):
        (folder / f"train/b/{name}.png").write_bytes(b"")
    assert "class 'b' has no readable training image" in refused(folder, bad_images="skip")


# ---- what is no image folder
def test_a_folder_that_is_not_there_or_is_a_file_is_refused_with_the_nearest(make_folder: Any) -> None:
    folder = make_folder({"a": 1})
    assert f"there is no folder {folder.parent / 'photo'}; nearest: photos" in refused(folder.parent / "photo")
    assert "there is no folder" in refused("/nowhere/at/all")
    assert "000.png is a file; expected a folder with one folder per class" in refused(folder / "a/000.png")


def test_folders_without_images_or_classes_are_refused_with_how_they_must_look(make_folder: Any) -> None:
    assert "there are no images below" in refused(make_folder({}, name="empty"))
    assert "there are no images below" in refused(make_folder({"a": 0, "b": 0}, name="hollow"))
    flat = make_folder({"": 3}, name="flat")
    assert f"3 images lie directly in {flat}; expected one folder of images (.jpg" in refused(flat)
    assert f"2 images lie directly in {make_folder({'train': 2}, name='bare')}/train" in refused(flat.parent / "bare")


def test_one_class_is_refused_and_a_folder_within_is_pointed_at(make_folder: Any) -> None:
    assert "there is only one class, 'a'; a classifier needs two or more" in refused(make_folder({"a": 3}, name="one"))
    nested = make_folder({"set/a": 3, "set/b": 3}, name="nested")
    assert f"did you mean folder:{nested}/set?" in refused(nested)


def test_classes_must_be_in_train(make_folder: Any) -> None:
    folder = make_folder({"train/cat": 2, "train/dog": 2, "val/cat": 1, "val/dogs": 1})
    assert "val/dogs: train has no such class; nearest: dog" in refused(folder)
    assert "class 'b' has no image" in refused(make_folder({"train/a": 2, "train/b": 0, "val/b": 1}, name="hole"))
    assert "there is a folder test and val, but no folder train" in refused(
        make_folder({"val/a": 1, "test/a": 1}, name="no")
    )
    assert "which look like parts, not classes; the parts must be named train, val and test" in refused(
        make_folder({"training/a": 2, "training/b": 2, "validation/a": 1}, name="renamed")
    )


def test_a_share_that_leaves_a_part_or_class_empty_says_what_would_do(make_folder: Any) -> None:
    folder = make_folder({"a": 3, "b": 30})
    assert "expected a number between 0 and 1" in refused(folder, eval_fraction=1.0)
    assert "expected a number between 0 and 1" in refused(folder, eval_fraction=float("nan"))
    error = refused(folder, eval_fraction=0.0001)
    enough = float(error.split("names; use ")[1].split(",")[0])
    assert len(opened(folder, eval_fraction=enough).eval) >= 1
    assert "this leaves no image of class 'a' of folder:" in refused(folder, eval_fraction=0.97)
    with_val = make_folder({"train/a": 2, "train/b": 2, "val/a": 1}, name="val")
    assert "has its own evaluation part" in refused(with_val, eval_fraction=0.1)


def test_options_are_checked() -> None:
    with pytest.raises(data.DataError, match="bad_images='ignore': expected stop or skip"):
        data.open_data("fashion_mnist_mini", bad_images="ignore")
    with pytest.raises(data.DataError, match="bad_images=skip: fashion_mnist_mini has no image files"):
        data.open_data("fashion_mnist_mini", bad_images="skip")
    with pytest.raises(data.DataError, match=r"data='folder:': expected one of .*folder:DIR"):
        data.open_data("folder:")


def test_names_that_are_no_text_can_be_shown(make_folder: Any) -> None:
    folder = make_folder({"train/a": 2, "train/b": 2, "val/a": 1})
    with open(os.fsencode(folder) + b"/train/a/caf\xe9\n.jpg", "wb"):
        pass
    assert printable("caf\udce9\n.jpg") == "caf\\udce9\\n.jpg"
    assert opened(folder, bad_images="skip").skipped == ("train/a/caf\\udce9\\n.jpg",)


# ---- parts and classes with one another's names
def noted(folder: pathlib.Path, **options: Any) -> tuple[data.Source, str]:
    lines: list[str] = []
    return opened(folder, say=lines.append, **options), "\n".join(lines)


@pytest.mark.parametrize("name", ["valid", "validation", "dev", "Validation", "eval"])
def test_a_folder_with_another_name_of_the_evaluation_part_is_that_part_and_told(make_folder: Any, name: str) -> None:
    source, said = noted(make_folder({"train/a": 4, "train/b": 5, f"{name}/a": 2, f"{name}/b": 1, "testing/b": 2}))
    assert source.test is not None
    assert [len(part) for part in (source.train, source.eval, source.test)] == [9, 3, 2]
    assert said == f"data: the folder {name} is the part val\ndata: the folder testing is the part test"


def test_two_folders_that_could_be_the_same_part_are_refused_also_where_one_has_its_very_name(make_folder: Any) -> None:
    counts = {"train/a": 2, "train/b": 2, "valid/a": 1, "dev/b": 2}
    two = make_folder(counts)
    assert (
        "dev and valid could each be the part val; rename the one that is meant to val, and move the others out of "
        f"{two}" in refused(two)
    )
    three = make_folder(counts | {"val/a": 3}, name="three")
    assert (
        "dev, val and valid could each be the part val; keep the one that is meant as val, and move the others out of "
        f"{three}" in refused(three)
    )
    assert "test and testing could each be the part test" in refused(
        make_folder({"train/a": 2, "train/b": 2, "test/a": 1, "testing/b": 1}, name="tests")
    )
    assert "train and training could each be the part train" in refused(
        make_folder({"train/a": 2, "train/b": 2, "training/a": 1}, name="trains")
    )
    for name in ("valid", "dev"):
        shutil.rmtree(three / name)
    (three / "valid").mkdir()
    assert len(opened(three).eval) == 3, "an empty folder is no part"


@pytest.mark.parametrize("name", ["train", "test", "val", "dev", "Train"])
def test_a_class_with_the_name_of_a_part_is_a_class_and_told(make_folder: Any, name: str) -> None:
    source, said = noted(make_folder({name: 20, "bus": 20, "car": 20}), eval_fraction=0.3)
    assert sorted(source.classes) == sorted((name, "bus", "car"))
    assert len(source.train) + len(source.eval) == 60
    assert f"data: {name} is read as a class, because images lie directly in it" in said


def test_a_train_folder_that_could_be_a_class_or_a_part_is_refused_and_folders_without_images_are_told(
    make_folder: Any,
) -> None:
    both = make_folder({"train": 3, "train/steam": 5, "train/diesel": 4, "bus": 6})
    assert "train could be the training part, since it has folders, or a class like bus" in refused(both)
    assert "if it is a class, give --parts=off, or rename it" in refused(both)
    beside = make_folder({"train/steam": 30, "train/diesel": 30, "bus": 6}, name="part")
    error = refused(beside, eval_fraction=0.3)
    assert (
        "train could be the training part, since it has folders, or a class like bus, in which images lie directly"
        in error
    )
    assert "if it is a class, give --parts=off, or rename it" in error
    assert f"if it is the training part, --data=folder:{beside}/train reads it alone" in error
    alone = opened(beside / "train", eval_fraction=0.3)
    shutil.move(beside / "bus", beside.parent / "bus")
    np.testing.assert_array_equal(opened(beside, eval_fraction=0.3).train.index, alone.train.index)
    _, said = noted(
        make_folder({"train/steam": 30, "train/diesel": 30, "notes/old": 6}, name="told"), eval_fraction=0.3
    )
    assert "train is the training part, so notes beside it is left out; if train is a class, rename it" in said
    assert "rename it" in refused(make_folder({"test/a": 2, "cat": 3}, name="test part"))


def test_parts_off_reads_every_folder_as_a_class_and_the_questions_name_it(make_folder: Any) -> None:
    for counts in (
        {"train": 20, "shoes": 20},
        {"test/old": 20, "cat": 20},
        {"train/x": 20, "val/x": 20},
        {"train/x": 20, "shoes": 20},
    ):
        folder = make_folder(counts, name="-".join(counts).replace("/", "_"))
        source, said = noted(folder, parts="off", eval_fraction=0.3)
        assert source.classes == tuple(sorted({place.split("/")[0] for place in counts}))
        assert (len(source.train) + len(source.eval), source.test, said) == (40, None, "")
    assert "give --parts=off" in refused(make_folder({"test/a": 2, "cat": 3}, name="asked"))
    assert "if they are classes, --parts=off says so" in refused(
        make_folder({"training/a": 2, "dev/a": 2}, name="asked 2")
    )
    with pytest.raises(data.DataError, match=r"parts='of': expected auto or off; nearest: off"):
        opened(folder, parts="of")


@pytest.mark.parametrize("names", [("Train", "Val"), ("TRAIN", "validation"), ("Train", "Test")])
def test_the_names_of_parts_are_understood_in_upper_case_too(make_folder: Any, names: tuple[str, str]) -> None:
    counts = {f"{name}/{kind}": 30 for name in names for kind in "ab"}
    source, said = noted(make_folder(counts), eval_fraction=None if names[1] != "Test" else 0.3)
    assert source.classes == ("a", "b")
    assert f"data: the folder {names[0]} is the part train" in said
    assert (source.test is not None) == (names[1] == "Test")
    error = refused(make_folder(counts | {"Dev/a": 2, "VALID/b": 1}, name="two"))
    assert "could each be the part val" in error
