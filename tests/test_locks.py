"""One process at a time works in a folder or on a file; a lock of a dead process is taken over."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from engine import locks
from engine.errors import InputError
from engine.locks import InUseError

ROOT = pathlib.Path(__file__).resolve().parents[1]
HOLD = """
import pathlib, sys, time
from engine import locks
with getattr(locks, sys.argv[1])(pathlib.Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path: pathlib.Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder ``run``."""
    process = start("hold_folder", tmp_path / "run")
    yield process
    process.kill()
    process.communicate()


def start(how: str, path: pathlib.Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, how, str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_folder_in_use_is_refused_with_the_process_that_uses_it_until_that_is_dead(
    tmp_path: pathlib.Path, other: subprocess.Popen[str]
) -> None:
    run = tmp_path / "run"
    said = rf"out={run}: process {other.pid}, running since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d \('-c hold_folder .*'\), is using"
    with pytest.raises(InUseError, match=said), locks.hold_folder(run):
        pass
    with pytest.raises(InUseError, match=said):
        locks.check_free(run)
    assert os.listdir(run) == [".lock"]
    with locks.hold_folder(tmp_path), locks.hold_folder(tmp_path / "run2"):  # others are free
        pass
    other.send_signal(signal.SIGKILL)
    with locks.hold_folder(run):  # at once, although the process may still be dying
        assert json.loads((run / ".lock").read_text())["pid"] == os.getpid()
    assert not run.exists() or os.listdir(run) == []


def test_a_file_in_use_is_refused(tmp_path: pathlib.Path) -> None:
    with locks.hold_file(tmp_path / "a.json"):
        with pytest.raises(InUseError, match=r"out=.*a\.json: process "), locks.hold_file(tmp_path / "a.json"):
            pass
        with locks.hold_file(tmp_path / "b.json"):
            assert sorted(os.listdir(tmp_path)) == [".a.json.lock", ".b.json.lock"]
    assert os.listdir(tmp_path) == []


def test_what_the_scope_made_goes_if_it_is_empty_whatever_happens(tmp_path: pathlib.Path) -> None:
    def fail() -> None:
        with locks.hold_folder(tmp_path / "a/b/c"):
            assert (tmp_path / "a/b/c/.lock").exists()
            raise FileNotFoundError("of the body")

    with pytest.raises(FileNotFoundError, match="of the body"):
        fail()
    assert os.listdir(tmp_path) == []
    with locks.hold_folder(tmp_path / "a/b/c"):
        (tmp_path / "a/b/c/file").touch()
    assert os.listdir(tmp_path / "a/b/c") == ["file"]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b'{"pid": "x", "host": 3}',
        *(pytest.param(text, marks=pytest.mark.slow) for text in (b"{", b"[]", b"\xff" * 5000)),
    ],
)
def test_a_holder_that_says_nothing_useful_is_another_process(tmp_path: pathlib.Path, text: bytes) -> None:
    with locks.hold_folder(tmp_path):
        (tmp_path / ".lock").write_bytes(text)
        with pytest.raises(InUseError, match="another process is using it"):
            locks.check_free(tmp_path)


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder"])
def test_a_lock_that_is_no_file_is_refused_and_its_target_left_alone(tmp_path: pathlib.Path, kind: str) -> None:
    folder, target = tmp_path / "run", tmp_path / "target"
    folder.mkdir()
    lock = folder / ".lock"
    if kind == "link":
        target.write_bytes(b"a user's own")
    if kind in ("link", "dangling"):
        lock.symlink_to(target)
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.mkdir()
    with pytest.raises(InputError, match=r"out=.*run: \.lock cannot be used as a lock"), locks.hold_folder(folder):
        pass
    locks.check_free(folder)
    assert target.exists() == (kind == "link")
    if kind == "link":
        assert target.read_bytes() == b"a user's own"


def test_of_many_at_once_one_holds_the_folder_at_a_time(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_PATIENCE", 30.0)
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with locks.hold_folder(tmp_path / "run"):  # which is made and removed again and again
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, inside) == (1, 0)
    assert not (tmp_path / "run").exists() or os.listdir(tmp_path / "run") == []


def test_a_forked_process_that_leaves_the_scope_does_not_end_it_for_its_parent(tmp_path: pathlib.Path) -> None:
    parent = os.getpid()
    with contextlib.suppress(SystemExit), locks.hold_folder(tmp_path):
        process = os.fork()
        if not process:
            raise SystemExit
        os.waitpid(process, 0)
        with pytest.raises(InUseError):
            locks.check_free(tmp_path)
    if os.getpid() != parent:
        os._exit(0)


def test_without_locks_of_the_file_system_nobody_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    with locks.hold_folder(tmp_path), locks.hold_folder(tmp_path):
        pass
    assert not [name for name in os.listdir(tmp_path) if re.fullmatch(r"\.lock", name)]
