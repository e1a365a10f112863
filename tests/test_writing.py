"""Files are replaced whole or not at all: kills, full disks, targets that are not files, leftovers of killed processes."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
import resource
import socket
import stat
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from engine import writing
from engine.errors import InputError
from engine.files import Npz, write_atomically, write_bytes, write_npz
from engine.writing import NoSpaceError, TargetError


@contextlib.contextmanager
def limit(size: int) -> Iterator[None]:
    """Within this scope files of this process cannot grow beyond a size, as on a disk that is full after so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def place(tmp_path: pathlib.Path, kind: str) -> pathlib.Path:
    """Something that is not a regular file."""
    path = tmp_path / "out.json"
    if kind == "device":
        if os.getuid():
            pytest.skip("only root can make a device")
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 7))  # as /dev/full
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        (tmp_path / "real.json").write_bytes(b"old")
        path.symlink_to(tmp_path / "real.json")
    else:
        path.symlink_to(tmp_path / "nowhere")
    return path


@pytest.mark.parametrize("kind", ["device", "pipe", "socket", "folder", "link", "dangling"])
def test_only_a_regular_file_is_ever_replaced(tmp_path: pathlib.Path, kind: str) -> None:
    path = place(tmp_path, kind)
    before, names = os.lstat(path), sorted(os.listdir(tmp_path))
    with pytest.raises(TargetError, match="only a regular file is ever replaced"):
        write_bytes(path, b"new")
    with pytest.raises(InputError, match="expected the name of a file in an existing, writable folder"):
        writing.check_file(path)
    now = os.lstat(path)
    assert (now.st_ino, now.st_mode, now.st_mtime_ns) == (before.st_ino, before.st_mode, before.st_mtime_ns)
    assert sorted(os.listdir(tmp_path)) == names
    if kind == "link":
        assert (tmp_path / "real.json").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere/a.json", "'.*nowhere' is not a folder"),
        ("file/a.json", "'.*file' is not a folder"),
        ("gone/a.json", "'.*gone' is not a folder"),
        ("a\0b", "null"),
        ("a" * 300, "File name too long"),
        ("a" * 250, "File name too long"),  # with the ending of a temporary file
        ("a/" * 3000 + "b", "is not a folder"),
        ("", "names a folder"),
        ("here/", "names a folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_beforehand(tmp_path: pathlib.Path, name: str, reason: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "here").mkdir()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    names = sorted(os.listdir(tmp_path))
    with pytest.raises(InputError, match=f"expected the name of a file in an existing, writable folder .*{reason}"):
        writing.check_file(os.path.join(tmp_path, name) if name else "")
    assert sorted(os.listdir(tmp_path)) == names


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file", "expected a folder, but this is a file"),
        ("file/deeper/still", "expected a folder, but .*/file is a file"),
        ("gone", "expected a folder, but this is a symbolic link to"),
        ("gone/deeper", "expected a folder, but .*/gone is a symbolic link to"),
        ("pipe", "expected a folder, but this is a named pipe"),
        ("a\0b", "null"),
        ("a" * 300, "File name too long"),
        ("new/" + "a" * 300 + "/run", "File name too long"),
        ("a/" * 2030, "File name too long"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_beforehand(tmp_path: pathlib.Path, name: str, reason: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    names = sorted(os.listdir(tmp_path))
    with pytest.raises(InputError, match=reason):
        writing.check_folder(os.path.join(tmp_path, name))
    assert sorted(os.listdir(tmp_path)) == names
    for good in ("", "new", "new/deep/er"):
        writing.check_folder(tmp_path / good)
    assert sorted(os.listdir(tmp_path)) == names


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that even root cannot write into")
def test_a_read_only_folder_is_found_by_trying() -> None:
    for path in ("/proc/self/run", "/proc/self"):
        with pytest.raises(InputError, match="files cannot be written into /proc"):
            writing.check_folder(path)
    with pytest.raises(InputError, match="expected the name of a file in an existing, writable folder"):
        writing.check_file("/proc/self/a.json")


@pytest.mark.parametrize("size", [0, 1, 100, 5000, 20_000, 33_000])
def test_a_full_disk_is_told_with_the_bytes_that_are_needed_and_free_and_the_old_file_stays(
    tmp_path: pathlib.Path, size: int
) -> None:
    path, arrays = tmp_path / "a.npz", [("a", np.arange(4000)), ("b", np.ones(300))]
    write_npz(path, arrays, texts={"state.json": "x"})
    old, needed = path.read_bytes(), path.stat().st_size
    assert size < needed
    with pytest.raises(NoSpaceError) as caught, limit(size):
        write_npz(path, iter(arrays), texts={"state.json": "x"})
    assert caught.value.errno == errno.EFBIG
    assert re.fullmatch(
        rf"{path}: File too large: it needs .* \({needed:,} bytes\), and .* bytes\) are free on its disk",
        str(caught.value),
    )
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["a.npz"]


def test_what_is_appended_and_does_not_fit_is_taken_back(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writing.append_text(path, '{"step": 1}\n')
    with pytest.raises(NoSpaceError, match=r"metrics.jsonl: File too large: it needs .*12 bytes"), limit(15):
        writing.append_text(path, '{"step": 2}\n')
    assert path.read_text() == '{"step": 1}\n'


def test_an_error_of_the_disk_that_is_not_about_space_stays_what_it_is(tmp_path: pathlib.Path) -> None:
    def broken(_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match="Input/output error") as caught:
        write_atomically(tmp_path / "a", broken)
    assert not isinstance(caught.value, NoSpaceError)
    assert os.listdir(tmp_path) == []


# ---- what killed processes leave


def in_a_fork(action: Callable[[], None]) -> int:
    """Does something in a process of its own and returns its pid; it ends at once when it returns, as if it were killed."""
    pid = os.fork()
    if not pid:
        try:
            action()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_what_killed_processes_left_is_swept_and_nothing_else(tmp_path: pathlib.Path) -> None:
    def leave() -> None:
        write_atomically(tmp_path / "run.json", lambda file: (file.write(b"half"), os._exit(0)))

    dead = in_a_fork(leave)
    assert os.listdir(tmp_path) == [f".run.json.{dead}.tmp"]
    (tmp_path / f".run.json.{os.getpid()}.tmp").write_bytes(b"a number that was given out again")
    (tmp_path / ".model.77.tmp/shard0").mkdir(parents=True)
    (tmp_path / ".model.77.tmp/shard0/x").write_bytes(b"x")
    kept = [".notes.txt.77.tmp", ".run.json.swp", "run.json.77.tmp", "run.json"]
    for name in kept:
        (tmp_path / name).write_bytes(b"a user's own")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/x").write_bytes(b"x")
    (tmp_path / ".run.json.78.tmp").symlink_to(tmp_path / "run.json")
    (tmp_path / ".model.78.tmp").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / ".run.json.79.tmp")

    def write(_: object) -> None:
        assert writing.sweep(tmp_path, {"run.json", "model", "mine"}.__contains__) == [
            ".model.77.tmp", *sorted([f".run.json.{dead}.tmp", f".run.json.{os.getpid()}.tmp"])
        ]  # fmt: skip

    write_atomically(tmp_path / "mine", write)  # which is in progress meanwhile
    with writing.temporary_folder(tmp_path / "model") as living:
        assert writing.sweep(tmp_path, {"run.json", "model", "mine"}.__contains__) == []
        assert living.is_dir()
    left = {*kept, "elsewhere", "mine", ".run.json.78.tmp", ".model.78.tmp", ".run.json.79.tmp"}
    assert set(os.listdir(tmp_path)) == left
    assert os.listdir(tmp_path / "elsewhere") == ["x"]


def test_a_temporary_file_of_the_same_name_is_never_taken_over(tmp_path: pathlib.Path) -> None:
    other = tmp_path / f".a.{os.getpid()}.tmp"  # of another thread, or in a container where numbers begin anew
    other.write_bytes(b"other")
    write_bytes(tmp_path / "a", b"mine")
    assert (other.read_bytes(), (tmp_path / "a").read_bytes()) == (b"other", b"mine")


def test_a_file_that_is_killed_at_any_call_is_the_old_or_the_new(tmp_path: pathlib.Path) -> None:
    path, calls = tmp_path / "a.npz", ("open", "fsync", "replace", "unlink")
    new = {"a": np.arange(3)}
    write_npz(tmp_path / "new.npz", new.items())
    found = set()
    for number in range(20):
        path.write_bytes(b"old")

        def killed(number: int = number) -> None:
            made = iter(range(99))

            def hook(real: Callable[..., object]) -> Callable[..., object]:
                def call(*args: object, **given: object) -> object:
                    if next(made) == number:
                        os._exit(9)
                    return real(*args, **given)

                return call

            for name in calls:
                setattr(os, name, hook(getattr(os, name)))
            write_npz(path, new.items())

        in_a_fork(killed)
        assert path.read_bytes() in (b"old", (tmp_path / "new.npz").read_bytes())
        found.add(path.read_bytes())
        writing.sweep(tmp_path, "a.npz".__eq__)
        assert sorted(os.listdir(tmp_path)) == ["a.npz", "new.npz"]
    assert len(found) == 2
    with Npz(path) as npz:
        assert npz.names() == ["a"]
