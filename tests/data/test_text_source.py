"""Sources of texts: parts, labels, tokens, and what is not clear."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import made_bert
import numpy as np
import pytest

from engine.data import DataError, open_data
from engine.data.source import check_source
from engine.data.text_name import parse_text_name
from engine.data.tokens import TokenizerFiles

pytest.importorskip("tokenizers", reason="the extra text (package tokenizers) is not installed")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFiles:
    folder = made_bert.make_folder(tmp_path_factory.mktemp("tiny"), weights=False)
    return TokenizerFiles(folder=folder, rows=len(made_bert.WORDS), positions=24, pad=0, max_tokens=8)


def write(place: pathlib.Path, *lines: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("".join(f"{line}\n" for line in lines))


def silent(_: str) -> None:
    pass


def test_rows_become_tokens_classes_and_parts(tmp_path: pathlib.Path, tokenizer: TokenizerFiles) -> None:
    write(tmp_path / "train.tsv", "text\tlabel", "good film\tyes", "bad\tno", "the film was very very very bad\tno")
    write(tmp_path / "dev.csv", "label,text", "no,dull", "yes,")
    write(tmp_path / "test.jsonl", '{"text": "great", "label": "yes"}')
    said: list[str] = []
    source = open_data(f"text:{tmp_path}", tokenizer=tokenizer, say=said.append)
    number = {word: n for n, word in enumerate(made_bert.WORDS)}
    batch = source.train.read(np.arange(3))
    assert batch["tokens"].dtype == np.int32
    assert batch["tokens"][0].tolist() == [2, number["good"], number["film"], 3, 0, 0, 0, 0]
    assert batch["tokens"][2].tolist() == [2, *(number[w] for w in ["the", "film", "was", "very", "very", "very"]), 3]
    assert source.classes == ("no", "yes")
    assert [part.labels.tolist() for part in (source.train, source.eval, source.test) if part] == [
        [1, 0, 0],
        [0, 1],
        [1],
    ]
    assert source.image_shape == (8,)
    assert "text: 1 of 6 examples have more than 8 tokens, up to 9, and are cut; --max_tokens sets the length" in said
    assert "text: 1 of 6 texts are empty" in said


def test_pairs_have_types_unless_the_model_has_none(tmp_path: pathlib.Path, tokenizer: TokenizerFiles) -> None:
    write(tmp_path / "a.tsv", "sentence1\tsentence2\tlabel", *[f"good {n}\tbad\t{n % 2}" for n in range(20)])
    source = open_data(f"text:{tmp_path}/a.tsv", tokenizer=tokenizer, eval_fraction=0.6, say=silent)
    assert set(source.train.input_specs) == {"tokens", "types"}
    assert source.train.read(np.arange(1))["types"].tolist() == [[0, 0, 0, 0, 1, 1, 0, 0]]
    plain = dataclasses.replace(tokenizer, types=False)
    source = open_data(f"text:{tmp_path}/a.tsv", tokenizer=plain, eval_fraction=0.6, say=silent)
    assert set(source.train.input_specs) == {"tokens"}


def test_equal_texts_are_never_divided_between_the_parts(tmp_path: pathlib.Path, tokenizer: TokenizerFiles) -> None:
    reviews = made_bert.make_reviews(60)
    write(tmp_path / "a.tsv", "text\tlabel", *[f"{text}\t{label}" for text, label in reviews * 2])
    source = open_data(f"text:{tmp_path}/a.tsv", tokenizer=tokenizer, eval_fraction=0.3, say=silent)
    sides = [set(part.index % 60) for part in (source.train, source.eval)]
    assert not sides[0] & sides[1]
    assert len(source.train) + len(source.eval) == 120


def test_a_text_in_several_pairs_is_told(tmp_path: pathlib.Path, tokenizer: TokenizerFiles) -> None:
    rows = [f"good {n}\tbad {n}\t{n % 2}" for n in range(20)]
    for more, told in ((rows, False), ([*rows, "good 3\tfilm\t1", "film\tbad 5\t0"], True)):
        write(tmp_path / "a.tsv", "sentence1\tsentence2\tlabel", *more)
        said: list[str] = []
        open_data(f"text:{tmp_path}/a.tsv", tokenizer=tokenizer, eval_fraction=0.6, say=said.append)
        line = (
            "text: 3 texts are in several pairs, which may be held out apart; a file for each part keeps them together"
        )
        assert (line in said) == told
        assert any("several pairs" in each for each in said) == told


def test_a_folder_for_each_class_has_a_file_for_each_text(tmp_path: pathlib.Path, tokenizer: TokenizerFiles) -> None:
    for number, (text, label) in enumerate(made_bert.make_reviews(40)):
        write(tmp_path / f"plain/{label}/{number}.txt", text)
        write(tmp_path / f"parts/{'val' if number < 8 else 'train'}/{label}/deeper/{number}.txt", text)
    plain = open_data(f"text:{tmp_path}/plain", tokenizer=tokenizer, eval_fraction=0.3, say=silent)
    parts = open_data(f"text:{tmp_path}/parts", tokenizer=tokenizer, say=silent)
    assert plain.classes == parts.classes == ("bad", "good")
    assert (len(parts.train), len(parts.eval)) == (32, 8)
    assert len(plain.train) + len(plain.eval) == 40


def test_classes_are_sorted_by_value_if_they_are_numbers_and_targets_are_floats(
    tmp_path: pathlib.Path, tokenizer: TokenizerFiles
) -> None:
    write(tmp_path / "a.tsv", "text\tstars", *[f"good film {k} {n}\t{n}" for n in (10, 9, 1) for k in range(12)])
    source = open_data(f"text:{tmp_path}/a.tsv,label=stars", tokenizer=tokenizer, eval_fraction=0.5, say=silent)
    assert source.classes == ("1", "9", "10")
    write(tmp_path / "b.tsv", "text\tscore", *[f"good {'very ' * n}\t{n / 7}" for n in range(30)])
    source = open_data(f"text:{tmp_path}/b.tsv,target=score", tokenizer=tokenizer, say=silent)
    assert source.classes == ()
    assert source.train.labels.dtype == np.float32
    with pytest.raises(DataError, match=r"the labels are 30 numbers such as .*; target=COLUMN instead of label=COLUMN"):
        open_data(f"text:{tmp_path}/b.tsv,label=score", tokenizer=tokenizer, say=silent)


def test_what_texts_are_decides_their_fingerprint(tmp_path: pathlib.Path, tokenizer: TokenizerFiles) -> None:
    def fingerprint(**changes: Any) -> str:
        used = dataclasses.replace(tokenizer, **changes)
        return open_data(f"text:{tmp_path}/a.tsv", tokenizer=used, eval_fraction=0.3, say=silent).fingerprint()

    made_bert.write_reviews(tmp_path / "a.tsv", 40)
    first = fingerprint()
    assert fingerprint() == first
    assert fingerprint(max_tokens=9) != first
    text = (tmp_path / "a.tsv").read_text()
    (tmp_path / "a.tsv").write_text(text.replace("very", "and"))
    assert fingerprint() != first


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (
            ["v1,v2", "ham,hello", "spam,buy", "ham,x"],
            "label=1",
            "no other line has the label 'v1'; .* header=yes .* header=no",
        ),
        (["text,label", "hello,", "x,y"], "", "line 2: the label is empty; expected a class"),
        (["text,label", "a,x", "b,x"], "", "only one class, 'x'"),
        (["text,label"], "", "has no example"),
        (["text,score", "a,1.5", "b,high"], "target=score", "line 3: the target 'high' is not a finite number"),
        (["text,score", "a,1.5", "b,nan"], "target=score", "line 3: the target 'nan' is not a finite number"),
        (
            ["text,id", *[f"a{n},n{n}" for n in range(30)]],
            "label=id",
            "30 different labels.*is this the column of the classes",
        ),
    ],
)
def test_labels_that_are_not_clear_are_refused(
    tmp_path: pathlib.Path, tokenizer: TokenizerFiles, lines: list[str], options: str, message: str
) -> None:
    write(tmp_path / "a.csv", *lines)
    with pytest.raises(DataError, match=message):
        open_data(f"text:{tmp_path}/a.csv{',' if options else ''}{options}", tokenizer=tokenizer, say=silent)


def test_a_class_that_only_the_evaluation_part_has_is_refused(
    tmp_path: pathlib.Path, tokenizer: TokenizerFiles
) -> None:
    write(tmp_path / "train.tsv", "text\tlabel", "a\tham", "b\tspam")
    write(tmp_path / "test.tsv", "text\tlabel", "a\tham", "b\tspma")
    with pytest.raises(DataError, match=r"test\.tsv: line 3: the training part has no class 'spma'.*; nearest: spam"):
        open_data(f"text:{tmp_path}", tokenizer=tokenizer, say=silent)


def test_parts_that_are_not_clear_are_refused(tmp_path: pathlib.Path, tokenizer: TokenizerFiles) -> None:
    def refuse(place: str, message: str, options: str = "") -> None:
        with pytest.raises(DataError, match=message):
            open_data(f"text:{tmp_path}/{place}{options}", tokenizer=tokenizer, say=silent)

    for name in ("one/train.tsv", "one/train.csv", "two/dev.tsv", "three/letter.txt"):
        write(tmp_path / name, "text\tlabel")
    refuse("one", "train.csv and train.tsv could each be the part train")
    refuse("two", "there is dev.tsv, but no file train")
    refuse("three", "expected train with one of .tsv")
    for name in ("train/a", "train/b", "other", "val/a"):
        write(tmp_path / f"four/{name}/1.txt", "good")
    refuse("four", "train is the training part, so other beside it cannot be a class")
    write(tmp_path / "five/ham/1.txt", "good")
    write(tmp_path / "five/test/1.txt", "good")
    refuse("five", "test beside ham could be a part or a class")
    refuse("five", "columns are for files of rows", ",label=1")
    (tmp_path / "six/ham").mkdir(parents=True)
    refuse("six", r"the class ham has no \.txt file")
    refuse("seven", "there is no file or folder")
    write(tmp_path / "notes.txt", "good\tx", "bad\ty")
    refuse("notes.txt", r"notes\.txt has none of the suffixes .*; delimiter=tab")
    (tmp_path / "latin.tsv").write_bytes(b"text\tlabel\ncaf\xe9\tx\n")
    refuse("latin.tsv", "line 2 is not UTF-8; if it is in the encoding latin-1")


def test_the_name_of_a_source_is_checked_without_reading_files() -> None:
    assert str(parse_text_name("text:a,b.tsv,text=3,label=1").path) == "a,b.tsv"
    for spec, message in (
        ("text:", "expected one of"),
        ("text:a.tsv,txt=3", "`txt` is not an option of texts; .*; nearest: text"),
        ("text:a.tsv,text=1,text=2", "`text` is given twice"),
        ("text:a.tsv,label=", "`label` is given without a value"),
        ("text:a.tsv,label=1,target=2", "label and target are both given"),
        ("text:a.tsv,header=maybe", "header=maybe: expected yes or no"),
        ("text:a.tsv,delimiter=x", "delimiter=x: expected one of comma, semicolon, tab, pipe"),
    ):
        with pytest.raises(DataError, match=message):
            check_source(spec)
    with pytest.raises(DataError, match="the model brings no tokenizer; expected a model such as bert:DIR"):
        open_data("text:a.tsv", say=silent)
    with pytest.raises(DataError, match="texts have no images; --max_tokens sets their length; leave out --image_size"):
        open_data("text:a.tsv", image_size=32, say=silent)
