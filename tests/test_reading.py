"""What is not a regular file is told at once, by whatever reads files."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from compat_v1.checkpoints.reader import open_checkpoint, open_source
from compat_v1.graphs.input_text import parse_inputs
from compat_v1.graphs.metagraph import read_metagraph
from engine import data, host
from engine.audit.training_audit import audit_run
from engine.data.class_names import read_class_names
from engine.data.idx import read_idx
from engine.errors import FileError, InputError
from engine.files import Npz, write_npz
from engine.models.keras.safe_loading import load_model
from engine.models.keras.weights_file import load_weights_file
from engine.porting.readers.safetensors_file import Safetensors
from engine.porting.readers.source import open_tensors
from engine.porting.rules.detect import get_rules
from engine.porting.tf_checkpoint import restore_strict
from engine.reading import check_regular, open_archive, open_file, read_file
from engine.runs.saved_flags import read_flags
from engine.study.job import read_record
from scripts.cli import _check_flagfiles

READERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "check_regular": ("x", check_regular),
    "open_file": ("x", open_file),
    "read_file": ("x", lambda path: read_file(path, 10)),
    "open_archive": ("x", open_archive),
    "npz": ("x.npz", Npz),
    "idx": ("x", read_idx),
    "idx folder": ("train-images-idx3-ubyte", lambda path: data.open_data(f"idx:{os.path.dirname(path)}")),
    "data": ("x.npz", lambda path: data.open_data(f"npz:{path}")),
    "tensors": ("x.npz", open_tensors),
    "hdf5": ("x.h5", open_tensors),
    "safetensors": ("x.safetensors", open_tensors),
    "safetensors itself": ("x.safetensors", Safetensors),
    "checkpoint": ("x.index", open_tensors),
    "prefix": ("x.index", lambda path: open_checkpoint(path.removesuffix(".index"))),
    "source": ("x", open_source),
    "state file": ("checkpoint", lambda path: open_source(os.path.dirname(path))),
    "keras": ("x.keras", lambda path: load_model(path, "model")),
    "old keras": ("x.h5", lambda path: load_model(path, "model")),
    "rules": ("x.rules", get_rules),
    "graph": ("x.meta", read_metagraph),
    "saved model": ("saved_model.pb", lambda path: read_metagraph(os.path.dirname(path))),
    "inputs": ("x.npz", lambda path: parse_inputs(f"a={path}")),
    "flagfile": ("x", lambda path: _check_flagfiles([f"--flagfile={path}"])),
}


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """A reader that blocks is interrupted."""

    def stop(*_: object) -> None:
        raise TimeoutError("a reader waits for ever")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def special(kind: str, path: pathlib.Path) -> str:
    """Makes what is not a regular file, and returns what a message calls it."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            os.chdir(path.parent)  # its address may have 107 bytes
            server.bind(path.name)
    else:
        path.symlink_to({"device": "/dev/zero", "dangling": "nowhere", "folder": path.parent}[kind])
    return {"pipe": "named pipe", "dangling": "nowhere, which does not exist"}.get(kind, kind)


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "dangling", "folder"])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_not_a_regular_file_is_told_at_once(reader: str, kind: str, tmp_path: pathlib.Path) -> None:
    name, read = READERS[reader]
    before = os.getcwd()
    try:
        special(kind, tmp_path / name)
    finally:
        os.chdir(before)
    with pytest.raises((InputError, OSError)) as caught:
        read(str(tmp_path / name))
    assert not isinstance(caught.value, TimeoutError)


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "dangling", "folder"])
def test_the_message_says_what_the_path_is(kind: str, tmp_path: pathlib.Path) -> None:
    before = os.getcwd()
    try:
        called = special(kind, tmp_path / "x")
    finally:
        os.chdir(before)
    with pytest.raises(FileError, match=called):
        check_regular(tmp_path / "x")


def test_files_beside_others_may_be_pipes(tmp_path: pathlib.Path) -> None:
    for name in ("checkpoint", "flags.json", "job.json", "run.json", "a.npz"):
        os.mkfifo(tmp_path / name)
    assert read_record(tmp_path / "job.json") is None
    assert read_flags(tmp_path) is None
    assert read_class_names(tmp_path / "a.npz") is None
    with pytest.raises(InputError):
        audit_run(tmp_path)
    with pytest.raises(InputError):
        load_weights_file(object(), tmp_path / "a.npz")
    with pytest.raises(InputError):
        restore_strict({}, tmp_path / "a")


def test_a_flagfile_inside_itself_is_told(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").write_text(f"--flagfile={tmp_path}/a\n")
    with pytest.raises(InputError, match="16 levels"):
        _check_flagfiles(["--flagfile", f"{tmp_path}/a"])


def test_the_limit_of_memory_is_what_is_free_or_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FROSTLINE_MEMORY_LIMIT", raising=False)
    assert 1 << 20 < host.memory_limit() < 1 << 60
    monkeypatch.setenv("FROSTLINE_MEMORY_LIMIT", "12345")
    assert host.memory_limit() == 12345


def test_a_file_that_is_too_large_for_its_kind_is_told(tmp_path: pathlib.Path) -> None:
    write_npz(tmp_path / "a", [])
    with pytest.raises(FileError, match="larger than 3 bytes"):
        read_file(tmp_path / "a", 3)
