"""Shards: whole or not at all, and believed only with the right checksum."""

from __future__ import annotations

import pathlib
import re

import ml_dtypes
import numpy as np
import pytest

from engine import files
from engine.feature_cache.shards import Column, ShardError, Shards

KEY, OTHER = "ab" * 32, "cd" * 32
COLUMNS = (
    Column((3,), np.dtype(np.float32)),
    Column((), np.dtype(np.int64)),
    Column((2, 2), np.dtype(ml_dtypes.bfloat16)),
)
ROWS, EACH = 25, 10


def table() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        rng.standard_normal((ROWS, 3)).astype(np.float32),
        rng.integers(-(1 << 40), 1 << 40, ROWS),
        rng.standard_normal((ROWS, 2, 2)).astype(ml_dtypes.bfloat16),
    ]


def opened(folder: pathlib.Path, key: str = KEY, rows: int = ROWS) -> Shards:
    return Shards(folder, key, COLUMNS, rows=rows, each=EACH)


def written(folder: pathlib.Path) -> Shards:
    made = opened(folder)
    for shard in made.missing:
        made.write(shard, [column[shard * EACH : (shard + 1) * EACH] for column in table()])
    return made


def test_rows_are_read_as_they_were_written_in_any_order(tmp_path: pathlib.Path) -> None:
    assert opened(tmp_path).missing == [0, 1, 2]
    written(tmp_path)
    again = opened(tmp_path)
    assert (again.missing, again.damaged) == ([], [])
    for rows in (np.array([24, 0, 11, 11, 9, 10]), np.arange(ROWS), np.array([], np.int64)):
        for found, right in zip(again.read(rows), table(), strict=True):
            assert found.dtype == right.dtype
            np.testing.assert_array_equal(found, right[rows])


def test_sizes_are_known_before_anything_is_written(tmp_path: pathlib.Path) -> None:
    expected = [opened(tmp_path).bytes_of(shard) for shard in range(3)]
    written(tmp_path)
    assert [path.stat().st_size for path in sorted(tmp_path.glob("shard-*"))] == expected


def test_every_flipped_byte_is_found_at_opening(tmp_path: pathlib.Path) -> None:
    written(tmp_path)
    path = tmp_path / "shard-000002"
    right = path.read_bytes()
    for at in [*range(128), 128, 300, len(right) - 1]:
        path.write_bytes(right[:at] + bytes([right[at] ^ 16]) + right[at + 1 :])
        found = opened(tmp_path)
        assert found.missing == [2], at
        assert "shard-000002: " in found.damaged[0]
        with pytest.raises(ShardError, match="does not exist yet, or is damaged"):
            found.read(np.array([20]))
        np.testing.assert_array_equal(found.read(np.array([19]))[0], table()[0][19:20])


@pytest.mark.parametrize("content", [b"", b"FRSTLINE", b"x" * 500], ids=["empty", "truncated", "another"])
def test_a_file_that_is_not_a_shard_is_reported(tmp_path: pathlib.Path, content: bytes) -> None:
    written(tmp_path)
    (tmp_path / "shard-000000").write_bytes(content)
    found = opened(tmp_path)
    assert found.missing == [0]
    assert len(found.damaged) == 1


def test_shards_of_another_key_number_or_size_are_not_believed(tmp_path: pathlib.Path) -> None:
    written(tmp_path)
    assert opened(tmp_path, OTHER).missing == [0, 1, 2]
    assert opened(tmp_path, rows=16).missing == [1]
    (tmp_path / "shard-000000").write_bytes((tmp_path / "shard-000001").read_bytes())
    assert opened(tmp_path).missing == [0]


def test_a_shard_of_another_format_is_refused_by_its_number(tmp_path: pathlib.Path) -> None:
    written(tmp_path)
    path = tmp_path / "shard-000001"
    right = path.read_bytes()
    path.write_bytes(right[:8] + (7).to_bytes(4, "little") + right[12:])
    found = opened(tmp_path)
    assert found.missing == [1]
    assert found.damaged == [f"{path}: it has format 7; this version of Frostline reads format 1"]


def test_a_folder_in_a_shards_place_is_rejected(tmp_path: pathlib.Path) -> None:
    (tmp_path / "shard-000001").mkdir()
    assert "shard-000001" in opened(tmp_path).damaged[0]


def test_a_shard_that_shrinks_after_opening_is_reported(tmp_path: pathlib.Path) -> None:
    written(tmp_path)
    found = opened(tmp_path)
    (tmp_path / "shard-000001").write_bytes(b"short")
    with pytest.raises(ShardError, match="its size has changed"):
        found.read(np.array([15]))


def test_after_a_read_no_page_of_a_shard_is_held(tmp_path: pathlib.Path) -> None:
    maps = pathlib.Path("/proc/self/smaps")
    if not maps.exists():
        pytest.skip("only Linux reports in /proc what is mapped")
    found = written(tmp_path)
    for rows in (np.arange(ROWS), np.arange(3)):
        for _ in range(2):  # given back, and read again
            np.testing.assert_array_equal(found.read(rows)[0], table()[0][rows])
        held = re.findall(rf"{re.escape(str(tmp_path))}/shard-\d+\n.*?\nRss: +(\d+) kB", maps.read_text(), re.DOTALL)
        assert held == ["0", "0", "0"]


def test_the_leavings_of_killed_processes_are_swept(tmp_path: pathlib.Path) -> None:
    (tmp_path / ".shard-000001.999999999.tmp").write_bytes(b"x")
    mine = tmp_path / ".notes.999999999.tmp"
    mine.write_bytes(b"x")

    def write(_: object) -> None:
        opened(tmp_path).sweep()
        assert len(list(tmp_path.iterdir())) == 2  # mine, and the one that is being written

    files.write_atomically(tmp_path / "shard-000002", write)
    assert {path.name for path in tmp_path.iterdir()} == {mine.name, "shard-000002"}
