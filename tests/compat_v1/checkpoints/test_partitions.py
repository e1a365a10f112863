"""Partitioned variables are one tensor, however they were saved; other names with numbers stay apart."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from compat_v1.checkpoints.families import group_families
from compat_v1.checkpoints.reader import open_checkpoint
from engine.files import FileError
from engine.porting.apply import load
from engine.porting.readers.verify import find_damage
from engine.porting.rules import language

v1 = tf.compat.v1
Save = Callable[..., pathlib.Path]
V1, V2 = v1.train.SaverDef.V1, v1.train.SaverDef.V2
TABLE = np.arange(40, dtype=np.float32).reshape(10, 4)


def trained(folder: pathlib.Path, *, shape: list[int], axis: int, parts: int, keys: bool, version: int) -> np.ndarray:
    """Saves a partitioned variable with Adam slots after 2 steps, and returns its value."""
    with tf.Graph().as_default(), v1.Session() as session:
        values = tf.reshape(tf.range(float(np.prod(shape))), shape)
        table = v1.get_variable(
            "emb/table",
            shape,
            initializer=lambda shape, dtype, partition_info: tf.slice(values, partition_info.var_offset, shape),
            partitioner=v1.fixed_size_partitioner(parts, axis),
        )
        train = v1.train.AdamOptimizer(0.1).minimize(tf.reduce_sum(tf.convert_to_tensor(table) ** 2))
        session.run(v1.global_variables_initializer())
        session.run([train])
        session.run([train])
        every = {variable.op.name: variable for variable in v1.global_variables()}
        v1.train.Saver(every if keys else None, write_version=version).save(session, str(folder / "m"))
        return session.run(tf.convert_to_tensor(table))


@pytest.mark.parametrize("keys", [False, True], ids=["slices", "part_keys"])
@pytest.mark.parametrize("version", [V1, V2], ids=["V1", "V2"])
@pytest.mark.parametrize(("shape", "axis", "parts"), [([4, 10], 1, 3), ([9, 2], 0, 3), ([23], 0, 12)])
def test_parts_become_the_whole_with_their_slots(
    tmp_path: pathlib.Path, shape: list[int], axis: int, parts: int, version: int, keys: bool
) -> None:
    whole = trained(tmp_path, shape=shape, axis=axis, parts=parts, keys=keys, version=version)
    with open_checkpoint(tmp_path / "m") as source:
        assert set(source.names()) == {"emb/table", "emb/table/Adam", "emb/table/Adam_1", "beta1_power", "beta2_power"}
        assert source.shape("emb/table") == source.shape("emb/table/Adam") == tuple(shape)
        np.testing.assert_array_equal(source.read("emb/table"), whole)
        for start in range(0, shape[0] + 1, 3):
            for stop in range(start, shape[0] + 1, 4):
                np.testing.assert_array_equal(source.read_slice("emb/table", start, stop), whole[start:stop])
        (family,) = group_families(source).variables
        assert family.slots == {"Adam": {"m": "emb/table/Adam", "v": "emb/table/Adam_1"}}
        assert find_damage(source) == []
        if keys:
            with open_checkpoint(tmp_path / "m", merge_parts=False) as plain:
                assert f"emb/table/part_{parts - 1}/Adam_1" in plain.names()
            assert source.parts["emb/table"].assumed == (shape == [9, 2])  # type: ignore[attr-defined]
        elif version == V2:
            assert len(source.pieces("emb/table")) == parts  # type: ignore[attr-defined]


def test_parts_of_one_shape_are_joined_along_axis_0_and_a_rule_can_say_otherwise(
    tmp_path: pathlib.Path,
) -> None:
    whole = trained(tmp_path, shape=[4, 6], axis=1, parts=3, keys=True, version=V2)
    with open_checkpoint(tmp_path / "m") as source:
        assert source.shape("emb/table") == (12, 2)
        assert source.parts["emb/table"].assumed  # type: ignore[attr-defined]
        model = {"table": tf.Variable(tf.zeros([4, 6]))}
        text = (
            "table <- emb/table | reshape(3, 4, 2) | transpose(1, 0, 2) | reshape(4, 6)\nskip emb/table/.*\nskip beta.*"
        )
        load(model, source, language.parse_rules(text))
    np.testing.assert_array_equal(model["table"], whole)


@pytest.mark.parametrize(
    "names",
    [
        {"part_1/kernel": (2, 2), "part_2/kernel": (2, 2)},  # scopes
        {"a/part_0/kernel": (2, 2), "a/part_1/kernel": (2, 2)},
        {"a/part_0/Adam": (2, 2), "a/part_1/Adam": (2, 2)},  # slots without their variable
        {"a/part_1": (2, 2), "a/part_2": (2, 2)},  # not from 0
        {"a/part_0": (2, 2), "a/part_2": (2, 2)},  # one is missing
        {"a/part_0": (2, 2), "a/part_1": (3, 3)},  # two axes differ
        {"a/part_0": (2, 2), "a/part_1": (2,)},
        {"a/part_0": (), "a/part_1": ()},
        {"a/part_0": (2,), "a/part_1": (2,), "a": (4,)},  # the name is taken
        {"a/part_00": (2,), "a/part_01": (2,)},
        {"part_0": (2,), "part_1": (2,)},  # no name
    ],
)
def test_what_is_no_partition_stays_as_it_is(
    tmp_path: pathlib.Path, save: Save, names: dict[str, tuple[int, ...]]
) -> None:
    save(tmp_path / "m", {name: np.ones(shape, np.float32) for name, shape in names.items()})
    with open_checkpoint(tmp_path / "m") as source:
        assert sorted(source.names()) == sorted(names)


def test_parts_of_two_types_stay_apart_and_ten_come_after_nine(tmp_path: pathlib.Path, save: Save) -> None:
    arrays = {f"a/part_{number}": np.full((2, 3), number, np.float32) for number in range(12)}
    arrays |= {"b/part_0": np.ones(2, np.float32), "b/part_1": np.ones(2, np.int32)}
    save(tmp_path / "m", arrays)
    with open_checkpoint(tmp_path / "m") as source:
        assert source.names() == ["a", "b/part_0", "b/part_1"]
        assert source.read("a")[:, 0].tolist() == [number for number in range(12) for _ in range(2)]


def test_a_damaged_part_is_named(tmp_path: pathlib.Path, save: Save) -> None:
    save(tmp_path / "m", {f"a/part_{number}": np.full(8, number, np.float32) for number in range(3)})
    data = tmp_path / "m.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[40] ^= 1
    data.write_bytes(content)
    with open_checkpoint(tmp_path / "m") as source:
        (bad,) = find_damage(source)
        assert bad.name == "a"
        assert "a/part_1: damaged" in bad.reason
        with pytest.raises(FileError, match="a/part_1"):
            source.read("a")


def test_each_slice_is_verified_alone(tmp_path: pathlib.Path) -> None:
    trained(tmp_path, shape=[4, 10], axis=1, parts=3, keys=False, version=V2)
    data = tmp_path / "m.data-00000-of-00001"
    content = data.read_bytes()
    found = set()
    for at in range(0, len(content), 5):
        data.write_bytes(content[:at] + bytes([content[at] ^ 8]) + content[at + 1 :])
        with open_checkpoint(tmp_path / "m") as source:
            (bad,) = find_damage(source)
            found.add(bad.name)
    assert found == {"emb/table", "emb/table/Adam", "emb/table/Adam_1", "beta1_power", "beta2_power"}


def test_both_real_partitioned_checkpoints_are_equal(real: pathlib.Path) -> None:
    with (
        open_checkpoint(real / "made_partitioned_adam/sliced.ckpt-3") as sliced,
        open_checkpoint(real / "made_partitioned_adam/part_keys.ckpt-3") as keys,
    ):
        assert set(sliced.names()) == set(keys.names())
        assert sliced.shape("emb/table") == (10, 4)
        for name in sliced.names():
            np.testing.assert_array_equal(sliced.read(name), keys.read(name))
        for start, stop in ((0, 10), (3, 5), (4, 7), (9, 10)):
            np.testing.assert_array_equal(
                sliced.read_slice("emb/table/Adam", start, stop), keys.read_slice("emb/table/Adam", start, stop)
            )
