"""A disk that fills up ends a program with a message; what was there stays, and with more space it goes on to the same bits."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engine.files import Npz

Call = Callable[..., tuple[int, str, str]]
FLAGS = (
    "--model=cnn:mini", "--weights=none", "--train_examples=48", "--eval_fraction=0.15", "--batch_size=16", "--steps=6",
    "--log_every=1", "--checkpoint_every=2", "--keep=2", "--keep_best", "--eval_every=3", "--optimizer=momentum",
    "--train=@head stages/3/.*",
)  # fmt: skip


class Disk:
    """A small disk, whose size can be changed."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        path.mkdir()
        if os.getuid() or self._mount("size=64k"):
            pytest.skip("a small disk can only be mounted by root, and not in every container")

    def resize(self, size: int) -> None:
        assert not self._mount(f"remount,size={size}")

    def used(self) -> int:
        found = os.statvfs(self.path)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def _mount(self, options: str) -> int:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.path)]
        return subprocess.run(command, capture_output=True, check=False).returncode

    def close(self) -> None:
        subprocess.run(["umount", str(self.path)], capture_output=True, check=False)


@pytest.fixture
def disk(tmp_path: pathlib.Path) -> Iterator[Disk]:
    found = Disk(tmp_path / "disk")
    yield found
    found.close()


def arrays(path: pathlib.Path) -> dict[str, bytes]:
    with Npz(path) as npz:
        return {name: npz.read(name).tobytes() for name in npz.names()}


def assert_equal_runs(one: pathlib.Path, other: pathlib.Path) -> None:
    for name in ("trained.npz", "checkpoints/step-00000006.npz", "checkpoints/best.npz"):
        assert arrays(one / name) == arrays(other / name), name
    lines = [re.sub(r'"examples_per_second": [^,]*', "", (run / "metrics.jsonl").read_text()) for run in (one, other)]
    assert lines[0] == lines[1]
    assert sorted(os.listdir(one)) == sorted(os.listdir(other))


def check(call: Call, disk: Disk, tmp_path: pathlib.Path, data: pathlib.Path, shares: list[float]) -> None:
    flags = (*FLAGS, f"--data=npz:{data}", "--cache=off")
    assert call(*flags, f"--out={tmp_path / 'whole'}")[0] == 0
    disk.resize(1 << 30)
    before = disk.used()
    assert call(*flags, f"--out={disk.path / 'all'}")[0] == 0
    needed = disk.used() - before
    refused = 0
    for number, share in enumerate(shares):
        out = disk.path / f"run{number}"
        disk.resize(disk.used() + int(share * needed) // 4096 * 4096)
        code, _, error = call(*flags, f"--out={out}", "--resume")
        if code:
            refused += 1
            assert code == 1, error
            assert "No space left on device" in error, error
            assert str(out) in error
            assert not list(out.rglob("*.tmp"))
        disk.resize(1 << 30)
        code, printed, error = call(*flags, f"--out={out}", "--resume")
        assert code == 0, printed + error
        assert_equal_runs(tmp_path / "whole", out)
    assert refused > len(shares) // 2


def test_a_run_on_a_full_disk_goes_on_to_the_same_bits(
    call: Call, disk: Disk, tmp_path: pathlib.Path, small_data: pathlib.Path
) -> None:
    check(call, disk, tmp_path, small_data, [0.5])


@pytest.mark.slow
def test_a_run_on_a_disk_of_any_size_goes_on_to_the_same_bits(
    call: Call, disk: Disk, tmp_path: pathlib.Path, small_data: pathlib.Path, curves: None
) -> None:
    check(call, disk, tmp_path, small_data, [number / 8 for number in range(8)])


def test_a_cache_on_a_full_disk_is_left_out_and_said(
    call: Call, disk: Disk, tmp_path: pathlib.Path, small_data: pathlib.Path
) -> None:
    flags: tuple[Any, ...] = (*FLAGS, "--train=@head", f"--data=npz:{small_data}", f"--cache_dir={disk.path}/caches")
    whole = (*FLAGS, "--train=@head", f"--data=npz:{small_data}", "--cache=off")
    assert call(*whole, f"--out={tmp_path / 'whole'}")[0] == 0
    disk.resize(disk.used() + 8192)
    code, printed, error = call(*flags, "--cache=require", f"--out={tmp_path / 'run'}")
    assert code == 1, printed
    assert re.search(r"the cache needs .*, but only .* are free|No space left on device: it needs", printed + error)
    disk.resize(1 << 24)
    code, printed, error = call(*flags, "--cache=require", f"--out={tmp_path / 'run'}", "--resume")
    assert code == 0, printed + error
