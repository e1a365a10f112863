"""Turns texts into token ids by WordPiece, with the vocabulary of a model's folder (extra ``text``: the package tokenizers)."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.data.part import DataError
from engine.errors import FileError
from engine.files import write_bytes, write_json
from engine.reading import read_file, read_json
from engine.text import join_words

VOCABULARY, SETTINGS, WHOLE = "vocab.txt", "tokenizer_config.json", "tokenizer.json"
DEFAULT_TOKENS = 128
_PAD, _UNKNOWN, _START, _END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
_LARGEST = 1 << 26  # bytes of a vocabulary; that of multilingual BERT has 1 MB
_FEWEST = 8  # tokens of which at least some are those of a pair


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """Where a model's tokenizer is, and what it must fit.

    Attributes:
        folder: the folder with ``vocab.txt``, and perhaps ``tokenizer_config.json``.
        rows: the rows of the model's table of words; None if there is no model to fit.
        positions: the most tokens that the model takes, or None.
        pad: the id that the model takes for padding.
        types: whether the model has token types, which say to which text of a pair a token belongs.
        max_tokens: the length of a row of tokens; None means 128, or ``positions`` if that is less.
    """

    folder: pathlib.Path
    rows: int | None = None
    positions: int | None = None
    pad: int | None = None
    types: bool = True
    max_tokens: int | None = None


@dataclass(frozen=True)
class Encoded:
    """The ids and types of a text's tokens, without padding; ``whole`` is how many there were before it was cut."""

    ids: list[int]
    types: list[int]
    whole: int


class Tokenizer:
    """WordPiece (arXiv:1609.08144) with the pre-processing of BERT, for texts and for pairs of texts.

    A text becomes ``[CLS] text [SEP]``, a pair ``[CLS] text [SEP] second [SEP]``. What is too long is cut at its end; of a
    pair, the longer text is cut first. Names of special tokens in a text are text. ``say`` is called with a line on what was
    decided.

    ``digest`` is that of all that decides which tokens a text becomes, but for ``max_tokens``.

    Raises:
        DataError: the vocabulary is missing, lacks a special token or does not fit the model, ``max_tokens`` is out of
            range, or the package tokenizers is not installed.
    """

    FILES = (VOCABULARY, SETTINGS, WHOLE)

    def __init__(self, files: TokenizerFiles, *, say: Callable[[str], None]) -> None:
        place = files.folder / VOCABULARY
        words = _read_vocabulary(place)
        if files.rows is not None and len(words) > files.rows:
            raise DataError(
                f"{place}: it has {len(words):,} word pieces, but the model's table of words has {files.rows:,} rows; the "
                "tokenizer must be that of the model"
            )
        if missing := [name for name in (_PAD, _UNKNOWN, _START, _END) if name not in words]:
            raise DataError(
                f"{place}: the special token{'s'[: len(missing) - 1]} {join_words(missing)} "
                f"{'are' if len(missing) > 1 else 'is'} missing; a vocabulary of BERT has {join_words([_PAD, _UNKNOWN, _START, _END])}"
            )
        self.pad, self.unknown, self._start, self._end = (words[name] for name in (_PAD, _UNKNOWN, _START, _END))
        if files.pad is not None and files.pad != self.pad:
            raise DataError(
                f"{place}: {_PAD} has the number {self.pad}, but pad_token_id of the model is {files.pad}; the tokenizer must "
                "be that of the model"
            )
        self.types = files.types
        self.max_tokens = _choose_length(files.max_tokens, files.positions)
        lower, strip, chinese, why = _read_settings(files.folder, words)
        decided = json.dumps([list(words.items()), lower, strip, chinese])
        self.digest = hashlib.sha256(decided.encode()).hexdigest()
        self._folder, self._count = files.folder, len(words)
        self.settings = {"do_lower_case": lower, "strip_accents": strip, "tokenize_chinese_chars": chinese}
        self._pieces = _build(words, lower=lower, strip=strip, chinese=chinese)
        cased = "lower-cased" if lower else "with capitals"
        say(f"text: {len(words):,} word pieces, {cased} ({why}); at most {self.max_tokens} tokens for an example")

    def __len__(self) -> int:
        """The number of word pieces."""
        return self._count

    def write_files(self, folder: pathlib.Path) -> None:
        """Writes ``FILES``: with the last one, the package tokenizers makes the rows of tokens that ``encode`` means."""
        import tokenizers

        write_bytes(folder / VOCABULARY, read_file(self._folder / VOCABULARY, _LARGEST))
        special = {"pad_token": _PAD, "unk_token": _UNKNOWN, "cls_token": _START, "sep_token": _END}
        kept = {"tokenizer_class": "BertTokenizer", "model_max_length": self.max_tokens, **self.settings, **special}
        write_json(folder / SETTINGS, kept)
        whole = tokenizers.Tokenizer.from_str(self._pieces.to_str())
        whole.post_processor = tokenizers.processors.BertProcessing((_END, self._end), (_START, self._start))
        whole.enable_truncation(self.max_tokens)
        whole.enable_padding(length=self.max_tokens, pad_id=self.pad, pad_token=_PAD)
        write_bytes(folder / WHOLE, whole.to_str(pretty=True).encode())

    def encode(self, text: str, second: str | None = None) -> Encoded:
        """The tokens of a text or of a pair."""
        parts = [self._pieces.encode(part, add_special_tokens=False).ids for part in (text, second) if part is not None]
        special = 1 + len(parts)
        whole = sum(map(len, parts)) + special
        lengths = _fit([len(part) for part in parts], self.max_tokens - special)
        ids, types = [self._start], [0]
        for number, (part, length) in enumerate(zip(parts, lengths, strict=True)):
            ids += [*part[:length], self._end]
            types += [number] * (length + 1)
        return Encoded(ids, types, whole)

    def fill(self, encoded: Encoded) -> tuple[list[int], list[int]]:
        """The ids and the types of a text as a row of ``max_tokens``, filled up with padding."""
        padding = self.max_tokens - len(encoded.ids)
        return encoded.ids + [self.pad] * padding, encoded.types + [0] * padding


def _fit(lengths: list[int], room: int) -> list[int]:
    """The lengths cut to a sum: the longest first, and of equals the last."""
    if len(lengths) == 1:
        return [min(lengths[0], room)]
    first, second = lengths
    if first <= room - room // 2:
        return [first, min(second, room - first)]
    return [room - min(second, room // 2), min(second, room // 2)] if first + second > room else lengths


def _choose_length(given: int | None, positions: int | None) -> int:
    if given is None:
        return min(DEFAULT_TOKENS, positions or DEFAULT_TOKENS)
    if not _FEWEST <= given <= (positions or given):
        most = "" if positions is None else f" to {positions}, all that the model has positions for"
        raise DataError(f"max_tokens={given}: expected {_FEWEST}{most or ' or more'}")
    return given


def _read_vocabulary(place: pathlib.Path) -> dict[str, int]:
    """The word pieces and their numbers, those of the lines."""
    try:
        text = read_file(place, _LARGEST).decode("utf-8")
    except FileError as error:
        raise DataError(str(error)) from None
    except OSError as error:
        raise DataError(
            f"{place}: {error.strerror or error}; a tokenizer needs the model's {VOCABULARY}, one word piece a line"
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{place}: the file is not UTF-8 text; expected one word piece a line") from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return {word: number for number, word in enumerate(lines)}


def _read_settings(folder: pathlib.Path, words: dict[str, int]) -> tuple[bool, bool | None, bool, str]:
    """Whether texts are lower-cased, lose their accents (None: if lower-cased), and have Chinese characters apart; and why."""
    given: dict[str, Any] = {}
    for name in ("config.json", SETTINGS):
        if (folder / name).is_file():
            try:
                found = read_json(folder / name, _LARGEST)
            except FileError as error:
                raise DataError(str(error)) from None
            if not isinstance(found, dict):
                raise DataError(f"{folder / name}: it has {type(found).__name__}; expected an object of settings")
            given |= {key: (value, name) for key, value in found.items()}

    def flag(key: str) -> bool | None:
        value, name = given.get(key, (None, ""))
        if value is not None and not isinstance(value, bool):
            raise DataError(f"{folder / name}: {key} is {value!r}; expected true or false")
        return value

    strip, chinese = flag("strip_accents"), flag("tokenize_chinese_chars")
    lower, why = flag("do_lower_case"), given.get("do_lower_case", ("", ""))[1]
    if lower is None:
        lower = not any(word.isascii() and word != word.lower() and not word.startswith("[") for word in words)
        why = "as no word piece has capitals" if lower else "as word pieces have some"
    return lower, strip, chinese is not False, why


def _build(words: dict[str, int], *, lower: bool, strip: bool | None, chinese: bool) -> Any:
    """The tokenizer of the package tokenizers."""
    try:
        import tokenizers
    except ImportError as error:
        raise DataError(
            f"data=text:...: texts need the package tokenizers ({error}); pip install 'frostline[text]' installs it"
        ) from None
    found = tokenizers.Tokenizer(tokenizers.models.WordPiece(words, unk_token=_UNKNOWN, max_input_chars_per_word=100))
    found.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=strip, lowercase=lower
    )
    found.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return found
