"""What projects of TensorFlow 1 leave: the model_dir of an Estimator, SavedModels, frozen graphs."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import made_graphs
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

v1 = tf.compat.v1
SHAPE = (6, 6, 1)


def network(x: Any, dtype: Any) -> Any:
    """A small network with a BatchNorm and the switch ``is_training``."""
    training = v1.placeholder(tf.bool, [], name="is_training")
    hidden = made_graphs.dense(tf.reshape(x, [-1, 36]), 5, "hidden", dtype)
    hidden = v1.nn.relu(made_graphs.batch_norm(hidden, training, dtype, form="fused"))
    return made_graphs.dense(hidden, made_graphs.CLASSES, "last", dtype)


def read_meta(path: pathlib.Path) -> Any:
    return meta_graph_pb2.MetaGraphDef.FromString(path.read_bytes())


def copy_checkpoint(source: pathlib.Path, target: pathlib.Path, *, graph: bool = True) -> None:
    """Copies a checkpoint (given by its prefix) under another prefix."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for file in source.parent.glob(f"{source.name}.*"):
        if graph or file.suffix != ".meta":
            shutil.copy(file, target.with_name(file.name.replace(source.name, target.name, 1)))


def write_saved_model(folder: pathlib.Path, meta: Any, checkpoint: pathlib.Path, tags: Sequence[Sequence[str]]) -> None:
    """Writes a SavedModel with a graph for each set of tags."""
    saved = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    for each in tags:
        made = saved.meta_graphs.add()
        made.CopyFrom(meta)
        made.meta_info_def.tags[:] = each
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString())
    copy_checkpoint(checkpoint, folder / "variables" / "variables", graph=False)


def write_model_dir(folder: pathlib.Path, made: pathlib.Path) -> None:
    """Writes what an Estimator leaves, from the graph that ``made_graphs.write_graph`` made: two checkpoints and an export."""
    source, meta = made.with_suffix(""), read_meta(made)
    for step in (10, 20):
        copy_checkpoint(source, folder / f"model.ckpt-{step}")
    (folder / "checkpoint").write_text(
        'model_checkpoint_path: "/home/someone/run/model.ckpt-20"\nall_model_checkpoint_paths: "model.ckpt-10"\n'
    )
    (folder / "graph.pbtxt").write_text(text_format.MessageToString(meta.graph_def))
    (folder / "events.out.tfevents.1500000000.host").write_bytes(b"")
    (folder / "eval").mkdir()
    (folder / "eval" / "events.out.tfevents.1500000001.host").write_bytes(b"")
    for number in ("1500000000", "1500000009"):
        write_saved_model(folder / "export" / "best" / number, meta, source, [["serve"]])
