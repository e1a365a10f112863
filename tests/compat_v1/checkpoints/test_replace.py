"""A checkpoint that replaces another one is the old or the new one, whole, whenever it is killed."""

from __future__ import annotations

import os
import pathlib
import shutil

import forked
import numpy as np
import pytest
import tensorflow as tf

from compat_v1.checkpoints import replace, writer
from compat_v1.checkpoints.export import export_checkpoint
from compat_v1.checkpoints.reader import open_checkpoint
from compat_v1.checkpoints.replace import InTheWayError
from engine.writing import NoSpaceError

KILLED = """
import pathlib, shutil, sys
import numpy as np
from compat_v1.checkpoints import export, writer
from killing import kill_at_each

folder, old, version, shard_bytes = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
writer.SHARD_BYTES = shard_bytes
values = {name: np.full(3, number, np.float32) for number, name in enumerate(sys.argv[5:], start=10)}

def prepare(number):
    return shutil.copytree(old, folder / f"{number:03d}") / "model"

def act(prefix):
    export.export_checkpoint(values, prefix, version=version)

print(kill_at_each(prepare, act, inside=str(folder)))
"""


def values(prefix: pathlib.Path) -> dict[str, list[float]]:
    """Everything in a checkpoint, as TensorFlow reads it and as this project does; both agree."""
    reader = tf.train.load_checkpoint(str(prefix))
    found = {name: reader.get_tensor(name).tolist() for name in reader.get_variable_to_shape_map()}
    with open_checkpoint(prefix) as ours:
        assert {name: ours.read(name).tolist() for name in ours.names()} == found
    return found


def write(prefix: pathlib.Path, names: str, first: float, *, shard_bytes: int, version: str = "V2") -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "SHARD_BYTES", shard_bytes)
        arrays = {name: np.full(3, first + number, np.float32) for number, name in enumerate(names)}
        export_checkpoint(arrays, prefix, version=version)  # type: ignore[arg-type]


def check_kills(
    programs: forked.Programs, tmp_path: pathlib.Path, old: tuple[str, int, str], new: tuple[str, int, str]
) -> int:
    """Replaces one checkpoint (its tensors, bytes of a shard, format) by another, killed at each call; returns the kills."""
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "killed").mkdir()
    write(tmp_path / "old/model", old[0], 0, shard_bytes=old[1], version=old[2])
    (tmp_path / "old/model.notes").write_bytes(b"a user's own")
    write(tmp_path / "new/model", new[0], 10, shard_bytes=new[1], version=new[2])
    (tmp_path / "new/model.notes").write_bytes(b"a user's own")
    both = values(tmp_path / "old/model"), values(tmp_path / "new/model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parents[2]))
        words = ["-c", KILLED, str(tmp_path / "killed"), str(tmp_path / "old"), new[2], str(new[1]), *new[0]]
        done = programs.run(words)
    assert done.returncode == 0, done.stderr
    kills = int(done.stdout.splitlines()[-1])
    found = []
    for number in range(kills + 1):
        state = tmp_path / f"killed/{number:03d}"
        found.append(both.index(values(state / "model")))
        if number in (*range(0, kills, 7), kills):  # and what is left goes with the next one, which succeeds
            write(state / "model", new[0], 10, shard_bytes=new[1], version=new[2])
            shadowed = {"model"} if (old[2], new[2]) == ("V1", "V2") else set()  # readers prefer V2
            assert {*os.listdir(state)} == {*os.listdir(tmp_path / "new")} | shadowed
            for name in os.listdir(tmp_path / "new"):
                assert (state / name).read_bytes() == (tmp_path / "new" / name).read_bytes()
    assert found == sorted(found)  # first old, then new
    assert {*found} == {0, 1}
    return kills


def test_a_checkpoint_killed_at_any_call_is_the_old_or_the_new(
    programs: forked.Programs, tmp_path: pathlib.Path
) -> None:
    assert check_kills(programs, tmp_path, ("a", 1 << 20, "V2"), ("a", 1 << 20, "V2")) > 15


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (("ab", 1, "V2"), ("ab", 1, "V2")),  # as many data files
        (("abc", 1, "V2"), ("ab", 1, "V2")),
        (("a", 1, "V2"), ("abcd", 1, "V2")),
        (("abcd", 1, "V2"), ("xyz", 1 << 20, "V2")),
        (("ab", 1 << 20, "V1"), ("ab", 1 << 20, "V1")),
        (("ab", 1 << 20, "V1"), ("ab", 1, "V2")),
    ],
)
def test_every_pair_of_checkpoints_killed_at_any_call_is_the_old_or_the_new(
    programs: forked.Programs, tmp_path: pathlib.Path, old: tuple[str, int, str], new: tuple[str, int, str]
) -> None:
    check_kills(programs, tmp_path, old, new)


def test_an_index_with_another_number_of_data_files_is_one_that_tensorflow_reads(tmp_path: pathlib.Path) -> None:
    for names in ("a", "abc"):
        write(tmp_path / "model", names, 0, shard_bytes=1)
        before = values(tmp_path / "model")
        count = len(names)
        index = tmp_path / "model.index"
        index.write_bytes(replace.renumber_shards(index.read_bytes(), count + 1))
        for number in range(count):
            (tmp_path / f"model.data-{number:05d}-of-{count:05d}").rename(
                tmp_path / f"model.data-{number:05d}-of-{count + 1:05d}"
            )
        assert values(tmp_path / "model") == before
    for damaged in (b"", b"\0\0", b"\0\0\x06abcdefgh", index.read_bytes()[:-20]):
        with pytest.raises((ValueError, IndexError)):
            replace.renumber_shards(damaged, 2)


def test_a_v1_checkpoint_does_not_come_beside_one_that_readers_prefer(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "model", "a", 0, shard_bytes=1)
    before = values(tmp_path / "model")
    with pytest.raises(InTheWayError, match=r"model\.index belongs to another checkpoint of this name"):
        write(tmp_path / "model", "a", 10, shard_bytes=1, version="V1")
    assert values(tmp_path / "model") == before
    write(tmp_path / "parts", "ab", 0, shard_bytes=1, version="V1")
    for size in (1, 1 << 20):
        with pytest.raises(InTheWayError, match=r"parts-0000\d-of-00002 belongs to another"):
            write(tmp_path / "parts", "ab", 10, shard_bytes=size, version="V1")


def test_what_is_no_file_of_a_checkpoint_is_left_alone(tmp_path: pathlib.Path) -> None:
    from engine.writing import TargetError

    (tmp_path / "elsewhere").write_bytes(b"a user's own")
    for name in (".index", ".data-00000-of-00001"):
        folder = tmp_path / f"with{name}"
        folder.mkdir()
        (folder / f"model{name}").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(TargetError, match="only a regular file is ever replaced"):
            write(folder / "model", "a", 0, shard_bytes=1)
        assert os.listdir(folder) == [f"model{name}"]
    assert (tmp_path / "elsewhere").read_bytes() == b"a user's own"


@pytest.mark.skipif(bool(os.getuid()), reason="only root can mount a small disk")
@pytest.mark.parametrize("version", ["V1", "V2"])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: pathlib.Path, version: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=64k tmpfs {disk} 2>/dev/null"):
        pytest.skip("a small disk cannot be mounted here")
    try:
        write(disk / "model", "ab", 0, shard_bytes=1 << 20, version=version)
        before = values(disk / "model")
        large = {"a": np.random.default_rng(0).normal(size=50_000).astype(np.float32)}
        with pytest.raises(
            NoSpaceError, match=r"model: No space left on device: it needs 195 KiB \(200,000 bytes\), and"
        ):
            export_checkpoint(large, disk / "model", version=version)  # type: ignore[arg-type]
        assert values(disk / "model") == before
        assert not [name for name in os.listdir(disk) if name.endswith(".tmp")]
    finally:
        os.system(f"umount {disk}")
        shutil.rmtree(disk, ignore_errors=True)
