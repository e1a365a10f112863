"""Expressions of users end, whatever they are."""

from __future__ import annotations

import re
import time

import pytest

from engine import patterns
from engine.errors import InputError
from engine.patterns import Pattern, PatternError
from engine.porting.rules.language import parse_rules
from engine.selection.filters import FilterError, parse_filter
from engine.text import compile_pattern, nearest

NAME = "blocks/10/attention/query/kernel_with_a_name"
BOMBS = [
    "(.+)+!",
    "(.*)*!",
    "(a|[a-z]|.)*!",
    ".*" * 12 + "!",
    "".join(["(.|[a-z])?"] * 40) + "!",
    "(.|[^!])" * (len(NAME) - 1) + "!",
    "(?x)( .+ # repeated\n) #\n+ !",
    "(?:(?:.+)(?#x))+!",
    "(?=(.+)+!).*",
    r"(.*)(.*)(.*)(.*)(.*)(.*)(.*)\1\2\3\4!",
]
INVALID = [
    "a{99999999999}",
    "a{4294967296,}",
    "(" * 3000,
    "(" * 3000 + ")" * 3000,
    "(" * 900 + ")" * 900,
    "[",
    "*",
    "(?P<a",
    r"\8",
]


@pytest.fixture(autouse=True)
def short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    patterns._used.clear()
    monkeypatch.setattr(patterns, "LIMIT", 0.2)


@pytest.mark.parametrize(
    "bomb", [pytest.param(bomb, marks=[pytest.mark.slow] * (number % 2)) for number, bomb in enumerate(BOMBS)]
)
def test_an_expression_with_too_many_ways_is_told_within_its_limit(bomb: str) -> None:
    start = time.monotonic()
    with pytest.raises(PatternError, match=r"takes longer than 0\.2 s"):
        Pattern(bomb).fullmatch(NAME)
    assert time.monotonic() - start < 15


@pytest.mark.parametrize("text", INVALID)
def test_what_is_not_an_expression_is_told_everywhere(text: str) -> None:
    for read in (
        Pattern,
        parse_filter,
        lambda each: compile_pattern(each, name="filter"),
        lambda each: parse_rules(f"skip {each}"),
        lambda each: parse_rules(f"{each} <- b"),
    ):
        with pytest.raises(InputError):
            read(text)


def test_expressions_match_as_in_python() -> None:
    for text in (r"blocks/(\d+)/.*", r"(?!head).*", r"((a|b)+/)*(\w+)", r"(.*)/\1", ".*a.*b.*c.*d.*e.*", "", r"a\)+b"):
        for name in ("blocks/3/a", "head", "a/b/c", "a/a", "abcde" * 9, "", "a)))b"):
            for method in ("fullmatch", "match"):
                mine, theirs = getattr(Pattern(text), method)(name), getattr(re, method)(text, name)
                assert (mine and (mine.span(), mine.groups())) == (theirs and (theirs.span(), theirs.groups()))


def test_filters_and_rules_name_the_expression_that_takes_too_long() -> None:
    class Variable:
        paths = (NAME,)
        groups = ()

    with pytest.raises(FilterError, match=r"`\(\.\+\)\+!`.*takes longer"):
        parse_filter("(.+)+! @head")(Variable())  # type: ignore[arg-type]
    rules = parse_rules(r"skip (.+)+!")
    with pytest.raises(InputError, match=r"rules:1: `\(\.\+\)\+!`.*takes longer"):
        rules.skip[0].pattern.fullmatch(NAME)
    rule = parse_rules(r"()()()()()()()()() <- \1\2\3\4\5\6\7\8\9x\1\2\3\4\5\6\7\8\9").rules[0]
    with pytest.raises(InputError, match="takes longer"):
        rule.could_give("y" * 200)


def test_what_is_long_is_told_or_cut() -> None:
    with pytest.raises(FilterError, match="20,000 items; the limit is 10,000"):
        parse_filter("a " * 20_000)
    start = time.monotonic()
    nearest("a" * 4000, ["ab" * 2000] * 20_000)
    assert time.monotonic() - start < 10
