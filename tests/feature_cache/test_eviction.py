"""The lock and the eviction of a cache never follow a link out of the folder of caches, and remove only what is ours."""

from __future__ import annotations

import os
import pathlib
import threading
import time

import pytest

from engine.feature_cache import eviction
from engine.feature_cache.options import CacheError

KEY = "a" * 32


@pytest.fixture
def outside(tmp_path: pathlib.Path) -> pathlib.Path:
    """A user's own folder, which looks like a cache."""
    folder = tmp_path / "outside"
    folder.mkdir()
    for name in ("shard-000000", "in_use", "manifest.json", "thesis.tex"):
        (folder / name).write_bytes(b"a user's own")
    return folder


def unharmed(folder: pathlib.Path) -> bool:
    names = ["in_use", "manifest.json", "shard-000000", "thesis.tex"]
    return sorted(os.listdir(folder)) == names and all((folder / n).read_bytes() == b"a user's own" for n in names)


@pytest.mark.parametrize("name", ["in_use", "shard-000000", "manifest.json", ".shard-000001.7.tmp"])
def test_a_planted_link_leaves_its_target_as_it_is(tmp_path: pathlib.Path, outside: pathlib.Path, name: str) -> None:
    cache = tmp_path / "caches" / KEY
    cache.mkdir(parents=True)
    (cache / "shard-000007").write_bytes(bytes(1000))
    (cache / name).symlink_to(outside / "thesis.tex")
    if name == "in_use":
        with pytest.raises(CacheError, match="in_use: it cannot be used as a lock"), eviction.hold_cache(cache):
            pass
        assert eviction.evict_caches(tmp_path / "caches", 1, 1) == []
    else:
        with eviction.hold_cache(cache):
            assert eviction.evict_caches(tmp_path / "caches", 1, 1) == []
        assert eviction.evict_caches(tmp_path / "caches", 1, 1) == [cache]
        assert not cache.exists()
    assert unharmed(outside)


def test_a_planted_folder_is_no_cache(tmp_path: pathlib.Path, outside: pathlib.Path) -> None:
    cache = tmp_path / "caches" / KEY
    cache.parent.mkdir()
    cache.symlink_to(outside)
    with pytest.raises(CacheError, match="it is a link or a file"), eviction.hold_cache(cache):
        pass
    assert eviction.evict_caches(tmp_path / "caches", 1, 1) == []
    assert not eviction._remove(cache)  # as if the link had come after the look
    assert unharmed(outside)


def test_a_pipe_as_a_lock_neither_hangs_nor_is_removed(tmp_path: pathlib.Path) -> None:
    cache = tmp_path / KEY
    cache.mkdir()
    os.mkfifo(cache / "in_use")
    with pytest.raises(CacheError, match="not a regular file"), eviction.hold_cache(cache):
        pass
    assert eviction.evict_caches(tmp_path, 1, 1) == []
    assert os.listdir(cache) == ["in_use"]


def test_only_files_of_ours_are_removed(tmp_path: pathlib.Path) -> None:
    cache = tmp_path / KEY
    (cache / "shard-000003").mkdir(parents=True)  # a folder
    mine = ("shard-000000", ".shard-000001.7.tmp", ".shard-000001.7-2.tmp", ".manifest.json.9.tmp", "manifest.json")
    others = (".shard-mine.tmp", "shard-0000001", "notes.txt")
    for name in (*mine, *others):
        (cache / name).write_bytes(b"x")
    assert eviction.evict_caches(tmp_path, 1, 1) == [cache]
    assert {*os.listdir(cache)} == {*others, "shard-000003"}


def test_a_cache_that_is_evicted_meanwhile_is_held_anew(tmp_path: pathlib.Path) -> None:
    cache, ended = tmp_path / KEY, time.monotonic() + 1.0

    def evict() -> None:
        while time.monotonic() < ended:
            eviction.evict_caches(tmp_path, 1, 1)

    thread = threading.Thread(target=evict)
    thread.start()
    try:
        for _ in range(50):
            with eviction.hold_cache(cache):
                (cache / "shard-000000").write_bytes(b"x")
                time.sleep(0.002)
                assert (cache / "shard-000000").exists()
    finally:
        thread.join()
