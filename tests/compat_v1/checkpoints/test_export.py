"""Weights back into a name-based checkpoint: what changed is there, what did not keeps its bits."""

from __future__ import annotations

import filecmp
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from compat_v1.checkpoints import export, writer
from compat_v1.checkpoints.reader import open_checkpoint
from compat_v1.checkpoints.writer import ExportError
from compat_v1.examples import musicnn_vgg, pnet
from compat_v1.graphs import extract, metagraph, saver_keys
from compat_v1.graphs.original import Original
from compat_v1.porting.known_shapes import known_from_graph
from compat_v1.porting.parity import compare_outputs, make_feeds
from engine import porting
from engine.files import FileError
from engine.porting import PortError
from engine.porting.reverse import KnownShapes, Reverse
from engine.porting.rules import language
from engine.selection.variables import name_variables

v1 = tf.compat.v1
Save = Callable[..., pathlib.Path]
EXAMPLES = pathlib.Path(export.__file__).parents[1] / "examples"
RNG = np.random.default_rng(0)
ARRAYS = {
    "dense/kernel": RNG.standard_normal((4, 3)).astype(np.float32),
    "dense/kernel/Adam": RNG.standard_normal((4, 3)).astype(np.float32),
    "dense/bias": np.array([0.0, -0.0, np.nan], np.float32),
    "half": RNG.standard_normal(5).astype(np.float16),
    "beta1_power": np.float32(0.9),
    "global_step": np.int64(7),
    "flag": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
}


def files(prefix: pathlib.Path | str) -> dict[str, bytes]:
    folder, name = str(prefix).rsplit("/", 1)
    return {
        file.name.removeprefix(name): file.read_bytes()
        for file in pathlib.Path(folder).iterdir()
        if file.name.startswith((f"{name}.data-", f"{name}.index"))
    }


def values(prefix: pathlib.Path | str) -> dict[str, np.ndarray]:
    with open_checkpoint(prefix, merge_parts=False) as source:
        return {name: source.read(name) for name in source.names()}


def partitioned(prefix: pathlib.Path, *, keys: bool) -> pathlib.Path:
    """emb/table [10, 4] in three parts: as slices of one name, or under keys of their own."""
    with tf.Graph().as_default(), v1.Session() as session:
        v1.set_random_seed(0)
        table = v1.get_variable("emb/table", [10, 4], partitioner=v1.fixed_size_partitioner(3), use_resource=True)
        step = v1.get_variable("step", initializer=3, use_resource=True)
        session.run(v1.global_variables_initializer())
        chosen: Any = {part.op.name: part for part in table} | {"step": step} if keys else None
        return pathlib.Path(v1.train.Saver(chosen).save(session, str(prefix)))


def test_an_unchanged_round_trip_gives_the_same_bytes(tmp_path: pathlib.Path, save: Save) -> None:
    base = save(tmp_path / "base/model.ckpt", ARRAYS)
    done = export.export_checkpoint({}, tmp_path / "out/model.ckpt", base=base)
    assert files(tmp_path / "out/model.ckpt") == files(base)
    assert set(done.copied) == set(ARRAYS)
    same = export.export_checkpoint(dict(ARRAYS), tmp_path / "same/model.ckpt", base=base)
    assert set(same.written) == set(ARRAYS)
    assert files(tmp_path / "same/model.ckpt") == files(base)
    assert not [file for file in (tmp_path / "out").iterdir() if file.name.endswith(".tmp")]


@pytest.mark.parametrize("keys", [True, False])
def test_partitioned_variables_go_back_as_the_base_has_them(tmp_path: pathlib.Path, keys: bool) -> None:
    base = partitioned(tmp_path / "base/model.ckpt", keys=keys)
    export.export_checkpoint({}, tmp_path / "out/model.ckpt", base=base)
    assert files(tmp_path / "out/model.ckpt") == files(base)
    new = RNG.standard_normal((10, 4)).astype(np.float32)
    export.export_checkpoint({"emb/table": new}, tmp_path / "new/model.ckpt", base=base)
    with open_checkpoint(tmp_path / "new/model.ckpt") as source:
        np.testing.assert_array_equal(source.read("emb/table"), new)
    assert list(values(tmp_path / "new/model.ckpt")) == list(values(base))
    with tf.Graph().as_default(), v1.Session() as session:  # the old graph's own Saver
        saver = v1.train.import_meta_graph(f"{base}.meta")
        saver.restore(session, str(tmp_path / "new/model.ckpt"))
        parts = session.run([variable.op.name + "/Read/ReadVariableOp:0" for variable in v1.global_variables()[:3]])
    np.testing.assert_array_equal(np.concatenate(parts), new)


def test_data_files_of_a_sharded_base_stay_apart(tmp_path: pathlib.Path) -> None:
    prefixes = [f"{tmp_path}/a/x", f"{tmp_path}/b/x"]
    for number, prefix in enumerate(prefixes):
        pathlib.Path(prefix).parent.mkdir()
        tf.raw_ops.SaveV2(
            prefix=prefix,
            tensor_names=[f"v{number}"],
            shape_and_slices=[""],
            tensors=[tf.fill([3], float(number))],
        )
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=prefixes, destination_prefix=f"{tmp_path}/base")
    export.export_checkpoint({}, tmp_path / "out", base=tmp_path / "base")
    assert files(tmp_path / "out") == files(tmp_path / "base")
    assert len(files(tmp_path / "out")) == 3


def test_a_large_checkpoint_is_written_in_shards_and_a_large_tensor_in_slices(
    tmp_path: pathlib.Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = {f"v{number}": RNG.standard_normal((50, 4)).astype(np.float32) for number in range(5)}
    base = save(tmp_path / "base", arrays | {"large": RNG.standard_normal((300, 4)).astype(np.float32)})
    monkeypatch.setattr(writer, "SHARD_BYTES", 1600)
    monkeypatch.setattr(export, "_SLICED", 2000)
    new = RNG.standard_normal((50, 4)).astype(np.float32)
    export.export_checkpoint({"v2": new}, tmp_path / "out", base=base)
    assert len(files(tmp_path / "out")) > 4
    found, wanted = values(tmp_path / "out"), values(base) | {"v2": new}
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
    export.export_checkpoint({"large": found["large"] + 1}, tmp_path / "more", base=base)
    np.testing.assert_array_equal(values(tmp_path / "more")["large"], found["large"] + 1)


def test_without_a_base_the_values_are_all_there_is(tmp_path: pathlib.Path) -> None:
    done = export.export_checkpoint(ARRAYS, tmp_path / "out")
    found = values(tmp_path / "out")
    assert found.keys() == ARRAYS.keys() == set(done.written)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == np.asarray(array).dtype


@pytest.mark.parametrize("shards", [1, 3])
def test_v1_format_on_request(tmp_path: pathlib.Path, save: Save, monkeypatch: pytest.MonkeyPatch, shards: int) -> None:
    arrays = {name: array for name, array in ARRAYS.items() if name not in ("half", "empty")}
    base = save(tmp_path / "base", arrays)
    if shards > 1:
        monkeypatch.setattr(writer, "SHARD_BYTES", 60)
    done = export.export_checkpoint({"global_step": np.int64(9)}, tmp_path / "out", base=base, version="V1")
    assert [pathlib.Path(file).name for file in done.files] == (
        ["out"] if shards == 1 else [f"out-{n:05d}-of-00003" for n in range(3)]
    )
    found = values(tmp_path / "out")
    for name, array in (arrays | {"global_step": np.int64(9)}).items():
        np.testing.assert_array_equal(found[name], array)
    again = export.export_checkpoint({}, tmp_path / "again", base=tmp_path / "out")  # and from V1 to V2
    assert set(again.copied) == set(arrays)
    with pytest.raises(ExportError, match="half: the V1 format does not have float16"):
        export.export_checkpoint({"half": ARRAYS["half"]}, tmp_path / "bad", version="V1")
    assert not [file for file in tmp_path.iterdir() if "bad" in file.name]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"dense/kernel": np.zeros((3, 4), np.float32)},
            r"got \[3, 4\] float32, but the base has dense/kernel \[4, 3\]",
        ),
        ({"dense/kernel": np.zeros((4, 3), np.float64)}, "float64, but the base has"),
        ({"beta1_power": np.zeros(1, np.float32)}, r"got \[1\] float32, but the base has beta1_power \[\]"),
    ],
)
def test_values_that_do_not_fit_the_base_are_refused(
    tmp_path: pathlib.Path, save: Save, given: dict[str, np.ndarray], message: str
) -> None:
    base = save(tmp_path / "base", ARRAYS)
    with pytest.raises(ExportError, match=message):
        export.export_checkpoint(given, tmp_path / "out", base=base)
    assert not files(tmp_path / "out")


def test_a_key_that_the_old_saver_wants_and_nobody_has_is_named(tmp_path: pathlib.Path) -> None:
    wanted = [saver_keys.Wanted(name, None, tf.float32, name) for name in ("a", "a/Adam", "b")]
    with pytest.raises(ExportError, match="restores 2 tensors that are missing: a/Adam, b; give a base that has them"):
        export.export_checkpoint({"a": np.zeros(2, np.float32)}, tmp_path / "out", wanted=wanted)
    with pytest.raises(ExportError, match="there is no tensor to write"):
        export.export_checkpoint({}, tmp_path / "out")


def test_a_damaged_base_is_not_copied_into_a_sound_file(tmp_path: pathlib.Path, save: Save) -> None:
    base = save(tmp_path / "base", ARRAYS)
    data = pathlib.Path(f"{base}.data-00000-of-00001")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(FileError, match="damaged"):
        export.export_checkpoint({}, tmp_path / "out", base=base)
    assert not [file for file in tmp_path.iterdir() if "out" in file.name]


def test_what_was_there_stays_when_writing_fails_and_goes_when_it_succeeds(tmp_path: pathlib.Path, save: Save) -> None:
    old = save(tmp_path / "model", {"a": np.zeros(3, np.float32)}, sharded=True)
    (tmp_path / "model.data-00001-of-00002").write_bytes(b"of an older one")
    before = files(old)

    def broken(_: str) -> np.ndarray:
        raise FileError("x: damaged")

    values_ = export._Arrays({"a": np.ones(3, np.float32)})
    values_.read = broken  # type: ignore[method-assign]
    with pytest.raises(FileError, match="damaged"):
        export.export_checkpoint(values_, old)
    assert files(old) == before
    export.export_checkpoint({"a": np.ones(3, np.float32)}, old, base=old)  # onto its own base
    assert values(old)["a"].tolist() == [1.0, 1.0, 1.0]
    assert sorted(files(old)) == [".data-00000-of-00001", ".index"]


class Small(tf.Module):
    """Two layers whose kernels are stored transposed and together, and a tied table."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.query = tf.Variable(tf.zeros([4, width]))
        self.key = tf.Variable(tf.zeros([4, width]))
        self.bias = tf.Variable(tf.zeros([2 * width]))
        self.table = tf.Variable(tf.zeros([6]))


RULES = language.parse_rules(
    """
    query  <- qk | transpose | split(1, 2, 0)
    key    <- qk | transpose | split(1, 2, 1)
    bias   <- bias_q + bias_k | concat(0)
    table  <- half | cast(float32)
    skip?  global_step
    """,
    name="small.rules",
)
STORED = {
    "qk": RNG.standard_normal((6, 4)).astype(np.float32),
    "bias_q": RNG.standard_normal(3).astype(np.float32),
    "bias_k": RNG.standard_normal(3).astype(np.float32),
    "half": RNG.standard_normal(6).astype(np.float16),
    "global_step": np.int64(7),
}


def test_what_changed_goes_back_through_the_rules_and_the_rest_keeps_its_bits(
    tmp_path: pathlib.Path, save: Save
) -> None:
    base = save(tmp_path / "base", STORED)
    model, source = Small(), open_checkpoint(base)
    porting.load(model, source, RULES)
    model.key.assign_add(tf.ones([4, 3]))
    model.bias[4].assign(50.0)
    back = Reverse(model, RULES, source)
    export.export_checkpoint(back, tmp_path / "out", base=base)
    assert set(back.changed) == {"bias_k", "bias_q", "qk"}  # one variable is made of both biases
    found = values(tmp_path / "out")
    np.testing.assert_array_equal(found["qk"][:3], STORED["qk"][:3])
    np.testing.assert_array_equal(found["qk"][3:], STORED["qk"][3:] + 1)
    assert (found["bias_k"][1], found["bias_q"].tobytes()) == (50.0, STORED["bias_q"].tobytes())
    for name in ("half", "global_step"):
        assert found[name].tobytes() == np.asarray(STORED[name]).tobytes()
    again = Small()
    porting.load(again, open_checkpoint(tmp_path / "out"), RULES)
    for one, other in zip(again.variables, model.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_without_a_base_names_and_shapes_come_from_the_graph_or_the_rules(tmp_path: pathlib.Path) -> None:
    model = Small()
    for number, variable in enumerate(model.variables):
        variable.assign(tf.fill(variable.shape, float(number + 1)))
    with pytest.raises(PortError, match=r"small.rules:2: `split\(1, 2, 0\)` does not determine .*; give a base"):
        KnownShapes.from_rules(name_variables(model), RULES)
    with tf.Graph().as_default():
        for name, array in STORED.items():
            v1.get_variable(name, initializer=tf.constant(array), use_resource=True)
        v1.train.Saver()
        meta = v1.train.export_meta_graph(saver_def=v1.train.Saver().as_saver_def())
    known = known_from_graph(meta, "old.meta")
    assert {name: (known.shape(name), known.dtype(name)) for name in known.names()} == {
        name: (array.shape, array.dtype) for name, array in STORED.items()
    }
    back = Reverse(model, RULES, known)
    with pytest.raises(ExportError, match="restores 1 tensors that are missing: global_step"):
        export.export_checkpoint(back, tmp_path / "out", wanted=saver_keys.list_wanted(meta))
    export.export_checkpoint(back, tmp_path / "out")
    again = Small()
    porting.load(again, open_checkpoint(tmp_path / "out"), RULES)
    for one, other in zip(again.variables, model.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    simple = language.parse_rules("(query|key) <- \\1/kernel | transpose\nbias <- b\ntable <- t")
    export.export_checkpoint(
        Reverse(model, simple, KnownShapes.from_rules(name_variables(model), simple)), tmp_path / "simple"
    )
    assert {name: array.shape for name, array in values(tmp_path / "simple").items()} == {
        "query/kernel": (3, 4),
        "key/kernel": (3, 4),
        "b": (6,),
        "t": (6,),
    }


def test_what_cannot_go_back_names_the_line(tmp_path: pathlib.Path, save: Save) -> None:
    base = save(tmp_path / "base", STORED)
    source = open_checkpoint(base)
    model = Small()
    porting.load(model, source, RULES)
    only = language.parse_rules("query <- qk | transpose | split(1, 2, 0)\nskip? .*", name="only.rules")
    with pytest.raises(PortError, match="without a place in the checkpoint"):
        Reverse(model, only, source)
    tied = language.parse_rules(
        "query <- qk | transpose | split(1, 2, 0)\nkey <- qk | transpose | split(1, 2, 0)\nfresh bias\nfresh table",
        name="tied.rules",
    )
    back = Reverse(model, tied, source)
    assert set(back.left_out) == {"bias", "table"}
    with pytest.raises(PortError, match=r"tied.rules:\d: .* give qk different values"):
        back.read("qk")
    part = language.parse_rules("query <- qk | transpose | split(1, 2, 0)\nfresh key\nfresh bias\nfresh table")
    with tf.Graph().as_default():
        v1.get_variable("qk", [6, 4], use_resource=True)
        meta = v1.train.export_meta_graph(saver_def=v1.train.Saver().as_saver_def())
    with pytest.raises(PortError, match="only a part of qk is in the model; give a base that has the rest"):
        Reverse(model, part, known_from_graph(meta, "old.meta"))


@pytest.mark.parametrize(
    ("example", "checkpoint", "graph"),
    [
        (pnet, "mtcnn_PNet_landmark/PNet-18", "mtcnn_PNet_landmark/PNet-18.meta"),
        (musicnn_vgg, "musicnn_MTT_vgg/", "musicnn_MTT_vgg/.meta"),
    ],
    ids=["pnet", "musicnn"],
)
def test_real_round_trips(
    tmp_path: pathlib.Path, real: pathlib.Path, example: Any, checkpoint: str, graph: str
) -> None:
    model, base = example.build(), f"{real}/{checkpoint}"
    table = EXAMPLES / f"{example.__name__.rpartition('.')[2]}.rules"
    meta = metagraph.read_metagraph(real / graph).definition
    wanted = saver_keys.list_wanted(meta)
    with open_checkpoint(base) as source:
        porting.load(model, source, table)
        unchanged = Reverse(model, table, source)
        out = export.export_checkpoint(unchanged, f"{tmp_path}/same/{checkpoint}", base=base, wanted=wanted)
        assert unchanged.changed == []
        folder = pathlib.Path(base if base.endswith("/") else base.rpartition("/")[0])
        for file in out.files:
            assert filecmp.cmp(file, folder / pathlib.Path(file).name, shallow=False)
        for number, variable in enumerate(model.trainable_variables):
            variable.assign(variable.value * (1 + 0.01 * number))
        changed = Reverse(model, table, source)
        new = f"{tmp_path}/new/{checkpoint}"
        export.export_checkpoint(changed, new, base=base, wanted=wanted)
        before = {name: source.read(name) for name in source.names()}
    assert len(changed.changed) >= len(model.trainable_variables) - 1  # the first is multiplied by 1
    after = values(new)
    assert {name for name in before if before[name].tobytes() != after[name].tobytes()} <= set(changed.changed)
    switch = {"model/Placeholder_2": False} if example is musicnn_vgg else None
    asked = None if example is musicnn_vgg else ["conv4_1/Reshape_1", "bbox_pred", "landmark_pred"]
    part = extract.extract(meta, path=graph, inputs=switch, outputs=asked)
    feeds = make_feeds(part.inputs, examples=3)
    with tf.Graph().as_default(), v1.Session() as session:  # the old graph's own Saver
        saver = v1.train.import_meta_graph(meta)
        saver.restore(session, new)
        outputs = session.run(list(part.outputs), {**feeds, **part.fixed})
    mine = [np.asarray(each) for each in tf.nest.flatten(model(next(iter(feeds.values())), training=False))]
    for one, other in zip(outputs, mine, strict=True):
        assert np.abs(one.reshape(other.shape) - other).max() <= 1e-5
    if example is musicnn_vgg:
        assert compare_outputs(Original(part, open_checkpoint(new)), model, feeds=feeds).holds()
