"""Whatever text a user gives as a filter, rule, schedule, phase or size, it is parsed or refused with an InputError."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import sizes
from engine.data import augment, corruptions, resize
from engine.errors import InputError
from engine.models import spec as model_spec
from engine.porting.deltas.interpolation import parse_ratios
from engine.porting.rules import language
from engine.recipes.config import FinetuneConfig
from engine.selection import filters
from engine.training import phases, rates, schedules

# What the languages are made of, so that texts get past the first check, among any characters at all.
PIECES = [
    "@all",
    "@none",
    "@head",
    "@norm",
    "@stats",
    "@blocks",
    "@blocks[1:2]",
    "@blocks[-1:]",
    "@layers(a)[0:3]",
    "@layers",
    "!",
    "~",
    "&",
    "|",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ".",
    ".*",
    "+",
    "?",
    "^",
    "$",
    "\\d",
    "\\1",
    "\\0",
    "head/.*",
    "blocks/(\\d+)/kernel",
    "<-",
    "<-?",
    "skip",
    "fresh",
    "prefix",
    "detect",
    "expect",
    "images",
    "tf",
    "|",
    "transpose(1,0)",
    "reshape(-1,d3)",
    "slice(0,0,t0)",
    "concat(0)",
    "#",
    "constant",
    "cosine",
    "linear",
    "exponential",
    "warmup=3",
    "decay=0.5",
    "floor=0.1",
    "final=0",
    "power=1",
    "every=2",
    "name=a",
    "train=@head",
    "steps=5",
    "epochs=1.5",
    "until=plateau",
    "patience=2",
    "min_delta=1e-3",
    "max_steps=9",
    "learning_rate=1e-3",
    "learning_rate=nan",
    "optimizer=adam",
    "1e999",
    "-1",
    "0",
    "1",
    "9999999999999999999",
    "a{99999999999}",
    "(?P<n>a)",
    "(?i)",
    "a{2}",
    "\\",
    '"',
    "'",
    "'@head",
    "@norm'",
    "=",
    ",",
    ":",
    ";",
    ",",
    "1KB",
    "2GB",
    "3MiB",
    "flip",
    "crop,color",
    "64",
    "64x48",
    "0x0",
    "vit:mini,depth=2",
    "NaN",
    "inf",
    "_",
    "1_000",
]
TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(PIECES), max_size=8).map(" ".join),
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=8).map("".join),
)
PARSERS: dict[str, Callable[[str], Any]] = {
    "filter": filters.parse_filter,
    "rules": language.parse_rules,
    "schedule": schedules.parse,
    "phase": phases.parse,
    "rates": rates.parse_rates,
    "bytes": lambda text: sizes.parse_bytes(text, name="budget"),
    "augment": augment.parse,
    "corruptions": corruptions.parse,
    "ratios": parse_ratios,
    "image size": resize.parse_image_size,
    "model options": lambda text: model_spec.parse_options("vit:mini", text.split(",")),
    "flags of a run": lambda text: FinetuneConfig(train=text, schedule=text, rates=text).phases(),
    "phases of a run": lambda text: FinetuneConfig(phase=(text, text)).phases(),
}


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(text=TEXTS)
def test_any_text_is_parsed_or_refused_cleanly(name: str, text: str) -> None:
    with contextlib.suppress(InputError):
        PARSERS[name](text)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=TEXTS)
def test_many_texts_are_parsed_or_refused_cleanly(name: str, text: str) -> None:
    with contextlib.suppress(InputError):
        PARSERS[name](text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("filter", "(" * 3000),
        ("filter", "[" * 3000),
        ("filter", "a{99999999999}"),
        ("schedule", f"cosine,warmup={'9' * 5000}"),
        ("phase", f"name=a steps={'9' * 5000}"),
        ("bytes", "9" * 5000 + "GB"),
        ("image size", "9" * 5000),
    ],
)
def test_texts_that_exhaust_a_parser_are_refused_cleanly(name: str, text: str) -> None:
    with pytest.raises(InputError):
        PARSERS[name](text)


def test_a_rule_file_of_any_bytes_is_read_or_refused_cleanly(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "any.rules"

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(content=st.binary(max_size=60))
    def check(content: bytes) -> None:
        file.write_bytes(content)
        with contextlib.suppress(InputError):
            language.read_rules(file)

    check()
