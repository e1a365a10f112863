"""WordPiece: the ids of real texts, cutting, and vocabularies that do not fit."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

import made_bert
import numpy as np
import pytest

from engine.data.part import DataError
from engine.data.tokens import Tokenizer, TokenizerFiles

pytest.importorskip("tokenizers", reason="the extra text (package tokenizers) is not installed")

SHARED = pathlib.Path(os.environ.get("FROSTLINE_SHARED", pathlib.Path(__file__).parents[3] / "shared"))
NUMBER = {word: number for number, word in enumerate(made_bert.WORDS)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFiles:
    folder = made_bert.make_folder(tmp_path_factory.mktemp("tiny"), weights=False)
    return TokenizerFiles(folder=folder, rows=len(made_bert.WORDS), positions=24, pad=0)


def silent(_: str) -> None:
    pass


def words(*names: str) -> list[int]:
    return [NUMBER[name] for name in names]


def open_tokenizer(files: TokenizerFiles, said: Any = silent, **changes: Any) -> Tokenizer:
    return Tokenizer(dataclasses.replace(files, **changes), say=said)


def test_texts_and_pairs_become_ids_and_types(files: TokenizerFiles) -> None:
    pieces = open_tokenizer(files)
    one = pieces.encode("The films, lovely!")
    assert one.ids == words("[CLS]", "the", "film", "##s", ",", "lovely", "[UNK]", "[SEP]")
    assert one.types == [0] * 8
    two = pieces.encode("good film", "bad")
    assert two.ids == words("[CLS]", "good", "film", "[SEP]", "bad", "[SEP]")
    assert (two.types, two.whole) == ([0, 0, 0, 0, 1, 1], 6)
    assert pieces.encode("").ids == words("[CLS]", "[SEP]")


def test_the_name_of_a_special_token_in_a_text_is_text(files: TokenizerFiles) -> None:
    found = open_tokenizer(files).encode("good [SEP] bad [PAD]").ids
    assert found.count(NUMBER["[SEP]"]) == 1
    assert NUMBER["[PAD]"] not in found


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (10, None, (6, None)),
        (9, 1, (4, 1)),
        (1, 9, (1, 4)),
        (9, 9, (3, 2)),
        (3, 2, (3, 2)),
        (4, 2, (3, 2)),
        (2, 4, (2, 3)),
    ],
)
def test_the_longer_text_of_a_pair_is_cut_first(
    files: TokenizerFiles, first: int, second: int | None, expected: tuple[int, int | None]
) -> None:
    pieces = open_tokenizer(files, max_tokens=8)
    found = pieces.encode("good " * first, None if second is None else "bad " * second)
    assert found.ids.count(NUMBER["good"]) == expected[0]
    assert found.ids.count(NUMBER["bad"]) == (expected[1] or 0)
    assert found.ids[-1] == NUMBER["[SEP]"]
    assert found.whole == first + (second or 0) + (2 if second is None else 3)


def test_the_length_is_the_smaller_of_128_and_what_the_model_takes(files: TokenizerFiles) -> None:
    assert open_tokenizer(files).max_tokens == 24
    assert open_tokenizer(files, positions=512).max_tokens == 128
    assert open_tokenizer(files, positions=512, max_tokens=300).max_tokens == 300
    for length in (25, 7, 0, -1):
        with pytest.raises(DataError, match=f"max_tokens={length}: expected 8 to 24"):
            open_tokenizer(files, max_tokens=length)


def test_settings_or_else_the_word_pieces_decide_about_capitals(tmp_path: pathlib.Path) -> None:
    said: list[str] = []
    folder = made_bert.make_folder(
        tmp_path / "cased", words=(*made_bert.SPECIAL, "Good", "good", "caf\xe9", "cafe"), weights=False
    )
    files = TokenizerFiles(folder=folder)
    assert open_tokenizer(files, said.append).encode("Good caf\xe9").ids == [2, 5, 7, 3]
    assert "with capitals (as word pieces have some)" in said[-1]
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    assert open_tokenizer(files, said.append).encode("Good caf\xe9").ids == [2, 6, 8, 3]
    assert "lower-cased (tokenizer_config.json)" in said[-1]
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "strip_accents": False}))
    assert open_tokenizer(files).encode("Good caf\xe9").ids == [2, 6, 7, 3]


def test_a_vocabulary_that_does_not_fit_the_model_is_refused(files: TokenizerFiles, tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="it has 26 word pieces, but the model's table of words has 25 rows"):
        open_tokenizer(files, rows=25)
    assert open_tokenizer(files, rows=30).pad == 0
    with pytest.raises(DataError, match=r"\[PAD\] has the number 0, but pad_token_id of the model is 1"):
        open_tokenizer(files, pad=1)
    bare = made_bert.make_folder(tmp_path / "bare", words=("[PAD]", "[UNK]", "good"), weights=False)
    with pytest.raises(DataError, match=r"the special tokens \[CLS\] and \[SEP\] are missing"):
        open_tokenizer(TokenizerFiles(folder=bare))
    (bare / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8 text"):
        open_tokenizer(TokenizerFiles(folder=bare))
    (bare / "vocab.txt").unlink()
    with pytest.raises(DataError, match=r"No such file or directory; a tokenizer needs the model's vocab\.txt"):
        open_tokenizer(TokenizerFiles(folder=bare))


@pytest.mark.skipif(not (SHARED / "models/minilm_l3_small").is_dir(), reason="needs shared/models/minilm_l3_small")
def test_the_ids_of_real_sentences_are_those_of_the_reference() -> None:
    folder = SHARED / "models/minilm_l3_small"
    sentences = (
        "a man is playing a guitar", "someone plays an instrument", "the stock market fell sharply today",
        "shares dropped on wall street", "you have won a free prize, call now!", "unaffable transfer-learning",
    )  # fmt: skip
    pieces = open_tokenizer(TokenizerFiles(folder=folder), max_tokens=32)
    with np.load(folder / "reference.npz") as reference:
        for text, ids, mask in zip(sentences, reference["input_ids"], reference["attention_mask"], strict=True):
            assert pieces.encode(text).ids == ids[: mask.sum()].tolist()
