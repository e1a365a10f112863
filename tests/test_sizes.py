"""Sizes in bytes as people write them."""

from __future__ import annotations

import pytest

from engine.sizes import SizeError, format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("7B", 7),
        ("1KiB", 1024),
        ("1k", 1024),
        ("2KB", 2000),
        ("512MiB", 512 << 20),
        ("1GiB", 1 << 30),
        (" 1.5 gib ", 3 << 29),
        ("2GB", 2_000_000_000),
        ("1TiB", 1 << 40),
    ],
)
def test_a_size_is_a_number_and_a_unit(text: str, size: int) -> None:
    assert parse_bytes(text, name="image_cache") == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 XB", "1e9", "nan", "1GiB2", "1,5GB", "99999999TB"])
def test_what_is_no_size_is_refused_with_examples(text: str) -> None:
    with pytest.raises(SizeError, match=r"image_cache='.*': (expected a number and a unit, such as|expected at most)"):
        parse_bytes(text, name="image_cache")


def test_a_size_is_shown_with_three_digits() -> None:
    shown = [format_bytes(size) for size in (0, 999, 1024, 376_320_000, 1 << 30, 1010 << 20, 5 << 40)]
    assert shown == ["0 bytes", "999 bytes", "1 KiB", "359 MiB", "1 GiB", "1010 MiB", "5 TiB"]
    assert format_bytes(int(999.4 * 2**20)) == "999 MiB"
    assert format_bytes(int(999.7 * 2**20)) == "1000 MiB"  # not 1e+03
