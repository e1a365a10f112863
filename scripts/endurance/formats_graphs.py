"""Graph files: .meta, saved_model.pb, graph.pbtxt and frozen .pb. They are read, checked and audited, and never run."""

from __future__ import annotations

from typing import Any

from .formats import Digests, Folder, Format
from .outcomes import sums


def _meta() -> Any:
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default():
        images = v1.placeholder(tf.float32, [None, 4], name="images")
        kernel = v1.get_variable("head/kernel", [4, 3], use_resource=False)
        bias = v1.get_variable("head/bias", [3], use_resource=True)
        logits = tf.add(tf.matmul(images, kernel), bias, name="logits")
        loss = tf.reduce_mean(tf.square(logits))
        v1.train.GradientDescentOptimizer(0.1).minimize(loss, name="train")
        v1.train.Saver([kernel, bias])
        return v1.train.export_meta_graph()


def _write(folder: Folder, kind: str) -> None:
    from google.protobuf import text_format  # type: ignore[import-untyped]
    from tensorflow.core.protobuf import saved_model_pb2

    meta = _meta()
    if kind == "saved_model.pb":
        meta.meta_info_def.tags.append("serve")
        content = saved_model_pb2.SavedModel(saved_model_schema_version=1, meta_graphs=[meta]).SerializeToString()
    elif kind == "graph.pbtxt":
        content = text_format.MessageToString(meta.graph_def).encode()
    else:
        content = (meta if kind == "model.meta" else meta.graph_def).SerializeToString()
    (folder / kind).write_bytes(content)


def _read(folder: Folder) -> Digests:
    from compat_v1.graphs.extract import extract
    from compat_v1.graphs.metagraph import read_metagraph
    from engine.audit.graph_audit import audit_graph

    (file,) = folder.iterdir()
    graph = read_metagraph(file)
    found = audit_graph(graph.facts(None), None)
    extract(graph.definition, path=file, inputs=["images"], outputs=["logits"])
    nodes = graph.definition.graph_def.node
    return sums(
        [(f"node {node.name}", node.SerializeToString(deterministic=True)) for node in nodes]
        + [(f"row {row.path}", repr(row).encode()) for row in found.variables]
    )


def _write_frozen(folder: Folder) -> None:
    """A graph whose weights are constants, in several forms of a TensorProto."""
    import numpy as np
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        images = tf.compat.v1.placeholder(tf.float32, [None, 4], name="images")
        kernel = tf.constant(np.arange(12, dtype=np.float32).reshape(4, 3), name="head/kernel")
        half = tf.constant(np.arange(9, dtype=np.float16).reshape(3, 3), name="half")
        x = tf.matmul(tf.matmul(images, kernel), tf.cast(half, tf.float32))
        tf.nn.bias_add(x, tf.constant(0.5, shape=[3], name="head/bias"), name="logits")
    (folder / "weights.pb").write_bytes(graph.as_graph_def().SerializeToString())


def _read_frozen(folder: Folder) -> Digests:
    from engine.porting.readers.source import open_tensors

    with open_tensors(folder / "weights.pb") as source:
        return sums((name, source.read(name)) for name in source.names())


FORMATS = (
    *(
        Format(
            kind,
            False,
            lambda folder, kind=kind: _write(folder, kind),  # type: ignore[misc]
            _read,
            counted=False,
        )
        for kind in ("model.meta", "saved_model.pb", "graph.pbtxt", "frozen.pb")
    ),
    Format("frozen weights", False, _write_frozen, _read_frozen, counted=False),
)
