"""Places that cannot be written are refused before anything is built, and stay what they are; so are places in use."""

from __future__ import annotations

import os
import pathlib
import stat
from collections.abc import Callable
from typing import Any

import pytest

from engine import locks

Call = Callable[..., tuple[int, str, str]]
QUICK = ("--weights=none", "--train_examples=16", "--batch_size=16", "--steps=1", "--cache=off")
PROGRAMS = {
    "finetune": [*QUICK, "--model=cnn:mini", "--train=@head", "--data=npz:DATA"],
    "benchmark_freezing": ["--quick", "--data=npz:DATA"],
}
FILES = {
    "inspect_checkpoint": ["--source=DATA"],
    "audit_graph": ["--graph=DATA"],
    "compare_v1": ["--model=cnn:mini"],
    "benchmark_cache": [],
    "benchmark_step": [],
    "benchmark_memory": [],
    "benchmark_accumulation": [],
    "benchmark_first_step": [],
    "benchmark_v1": [],
    "port_checkpoint": ["--source=DATA", "--target=cnn:mini"],
}
BAD_FOLDERS = {
    "file": "expected a folder, but this is a file",
    "file/below": "is a file",
    "gone": "is a symbolic link to",
    "pipe": "is a named pipe",
    "device": "is a device",
    "x" * 300: "File name too long",
    "/proc/run": "files cannot be written into /proc",
}
BAD_FILES = {
    "file/x.json": "is not a folder|is a file",
    "gone.json": "symbolic link",
    "pipe.json": "named pipe",
    "device.json": "a device",
    "x" * 300 + ".json": "File name too long",
    "/proc/x.json": "/proc|No such file",
    "folder.json": "a folder|expected",
}


@pytest.fixture
def places(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with everything that is no place for a file."""
    folder = tmp_path / "places"
    folder.mkdir()
    (folder / "file").write_bytes(b"a user's own")
    for ending in (".json", ".npz"):
        (folder / f"folder{ending}").mkdir()
    for ending in ("", ".json", ".npz"):
        (folder / f"gone{ending}").symlink_to(folder / "nowhere")
        os.mkfifo(folder / f"pipe{ending}")
        if not os.getuid():
            os.mknod(folder / f"device{ending}", stat.S_IFCHR | 0o666, os.makedev(1, 7))  # as /dev/full
    return folder


def kinds(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.lstat().st_ino, path.lstat().st_mode) for path in folder.iterdir()}


def tokens(words: list[str], data: pathlib.Path) -> list[str]:
    return [word.replace("DATA", str(data)) for word in words]


def test_a_run_is_not_begun_where_it_cannot_be_written(
    call: Call, places: pathlib.Path, small_data: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scripts import cli

    def forbidden(**_: object) -> None:
        raise AssertionError("this comes too early")

    before = kinds(places)
    monkeypatch.setattr(cli, "import_tensorflow", forbidden)
    for name, reason in BAD_FOLDERS.items():
        if name == "device" and os.getuid():
            continue
        for more in ((), ("--resume",)):
            code, printed, error = call(*tokens(PROGRAMS["finetune"], small_data), f"--out={places / name}", *more)
            assert code == 2, (name, printed, error)
            assert "resume" in error or reason in error, (name, error)
    assert kinds(places) == before


@pytest.mark.parametrize("name", ["trained.npz", "run.json", "metrics.jsonl", "checkpoints", "flags.json"])
def test_something_in_the_way_in_the_run_is_found_at_once(
    call: Call, tmp_path: pathlib.Path, small_data: pathlib.Path, name: str
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / name).symlink_to(tmp_path / "nowhere")
    code, _, error = call(*tokens(PROGRAMS["finetune"], small_data), f"--out={out}", "--resume")
    assert code == 2, error
    assert "symbolic link" in error
    assert os.listdir(out) == [name]


@pytest.mark.parametrize("program", ["inspect_checkpoint", "port_checkpoint"])
def test_a_file_that_cannot_be_written_is_refused_by(
    program: str, run_each: Any, places: pathlib.Path, small_data: pathlib.Path
) -> None:
    check_files(program, run_each, places, small_data)


@pytest.mark.slow
@pytest.mark.parametrize("program", sorted({*FILES} - {"inspect_checkpoint", "port_checkpoint"}))
def test_a_file_that_cannot_be_written_is_refused_by_every_program(
    program: str, run_each: Any, places: pathlib.Path, small_data: pathlib.Path
) -> None:
    check_files(program, run_each, places, small_data)


def check_files(program: str, run_each: Any, places: pathlib.Path, data: pathlib.Path) -> None:
    before, asked = kinds(places), []
    names = [name for name in BAD_FILES if not (name.startswith("device") and os.getuid())]
    for name in names:
        name = name.replace(".json", ".npz") if program == "port_checkpoint" else name
        asked.append([*tokens(FILES[program], data), f"--out={places / name}"])
    for name, (code, printed, error) in zip(names, run_each(f"scripts.{program}", asked), strict=True):
        assert code == 2, (name, printed, error)
        assert any(word in error for word in ("out=", "expected")), (name, error)
    assert kinds(places) == before


def test_a_second_run_in_the_same_folder_is_refused_and_names_the_first(
    call: Call, tmp_path: pathlib.Path, small_data: pathlib.Path
) -> None:
    out = tmp_path / "run"
    flags = (*tokens(PROGRAMS["finetune"], small_data), f"--out={out}")
    with locks.hold_folder(out):
        for more in ((), ("--resume",)):
            code, _, error = call(*flags, *more)
            assert code == 2
            assert f"out={out}: process {os.getpid()}, running since" in error
        code, _, error = call(*flags, "--dry_run")  # writes nothing
        assert code == 0, error
        assert os.listdir(out) == [".lock"]
    code, _, error = call(*flags)
    assert code == 0, error
    assert not [name for name in os.listdir(out) if name.startswith(".")]


def test_a_resume_removes_what_killed_processes_left(
    call: Call, tmp_path: pathlib.Path, small_data: pathlib.Path
) -> None:
    out = tmp_path / "run"
    left = (".metrics.jsonl.7.tmp", ".run.json.7-1.tmp", "checkpoints/.step-00000001.npz.7.tmp", ".lock")
    (out / "checkpoints").mkdir(parents=True)
    for name in (*left, ".notes.txt.7.tmp"):
        (out / name).write_bytes(b"x")
    code, printed, error = call(*tokens(PROGRAMS["finetune"], small_data), f"--out={out}", "--resume")
    assert code == 0, error
    assert "removed what a killed process had not finished: .metrics.jsonl.7.tmp" in printed
    assert not [name for name in left if (out / name).exists()]
    assert (out / ".notes.txt.7.tmp").exists()


def test_the_folder_of_a_run_without_a_name_is_a_new_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.runs import existing

    class Stopped(existing.datetime.datetime):  # type: ignore[name-defined,misc]
        @classmethod
        def now(cls, tz: object = None) -> Any:
            return cls(2020, 1, 2, 3, 4, 5)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(existing.datetime, "datetime", Stopped)
    found = []
    for _ in range(11):
        found.append(existing.choose_out("vit:S/14,pool=mean"))
        found[-1].mkdir(parents=True)
    assert [str(path) for path in found[:3]] == [
        "runs/20200102-030405-vit-S-14", "runs/20200102-030405-vit-S-14-2", "runs/20200102-030405-vit-S-14-3"
    ]  # fmt: skip
    assert found[-1].name == "20200102-030405-vit-S-14-11"
