"""audit_graph from the outside: files in, a table, audit.json and an exit code out."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

ROOT = pathlib.Path(__file__).resolve().parents[2]
v1 = tf.compat.v1
Call = Callable[..., tuple[int, str, str]]


def shared(*parts: str) -> pathlib.Path:
    folder = pathlib.Path(os.environ.get("FROSTLINE_SHARED") or ROOT.parent / "shared") / "tf1_checkpoints"
    if not folder.joinpath(*parts).exists():
        pytest.skip(f"{'/'.join(parts)} is neither in $FROSTLINE_SHARED nor in ../shared")
    return folder.joinpath(*parts)


# One process for all: the flags of two programs cannot be defined in one, and TensorFlow is slow to start.
SERVER = """
import contextlib, io, json, sys
from absl import flags
from absl.testing import flagsaver
from scripts import audit_graph, cli

for line in sys.stdin:
    out, error = io.StringIO(), io.StringIO()
    sys.argv = ["audit_graph", *json.loads(line)]
    with flagsaver.flagsaver(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        flags.FLAGS.unparse_flags()
        code = cli._run(audit_graph.main, audit_graph.__doc__, audit_graph.__name__)
    print(json.dumps([code, out.getvalue(), error.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def run() -> Iterator[Call]:
    """Runs the program with flags: (exit code, stdout, stderr)."""
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def call(*words: str) -> tuple[int, str, str]:
            server.stdin.write(json.dumps(words) + "\n")
            server.stdin.flush()
            code, out, error = json.loads(server.stdout.readline())
            assert "Traceback" not in out + error
            return code, out, error

        yield call
        server.stdin.close()


def meta_graph(*, leak: bool, second: bool = False) -> Any:
    with tf.Graph().as_default() as made:
        x = v1.placeholder(tf.float32, [None, 3])
        below, above = v1.get_variable("below", [3, 4]), v1.get_variable("above", [4, 1])
        loss = tf.reduce_mean(tf.square(tf.tanh(x @ tf.stop_gradient(below)) @ above))
        loss += tf.nn.l2_loss(below) if leak else 0.0
        v1.train.MomentumOptimizer(0.1, 0.9).minimize(loss, name="train")
        if second:
            v1.train.GradientDescentOptimizer(0.1).minimize(loss, name="second")
        return v1.train.export_meta_graph(graph=made)


def written(folder: pathlib.Path, **options: bool) -> str:
    file = folder / "model.meta"
    file.write_bytes(meta_graph(**options).SerializeToString())
    return str(file)


def test_without_findings_it_ends_with_0_and_writes_audit_json(run: Call, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "audit.json"
    code, text, _ = run(f"--graph={written(tmp_path, leak=False)}", f"--out={out}")
    assert code == 0
    found = json.loads(out.read_text())
    assert found["train_op"] == "train"
    assert {row["path"]: row["written"] for row in found["variables"]} == {
        "below": False,
        "above": True,
        "above/Momentum": True,
    }
    assert "2 of 3 variables may be written; 0 finding(s)" in text
    assert "cut at StopGradient" in text


def test_findings_are_printed_with_their_fix_and_end_with_1(run: Call, tmp_path: pathlib.Path) -> None:
    code, text, _ = run(f"--graph={written(tmp_path, leak=True)}")
    assert code == 1
    assert "finding: below: only a regulariser moves it" in text
    assert "build the regulariser from the trained variables only" in text
    code, text, _ = run(f"--graph={written(tmp_path, leak=False)}", "--expect_frozen=ab.*")
    assert code == 1
    assert "finding: above: frozen but written" in text


def test_the_train_op_is_chosen_by_name_and_may_be_several(run: Call, tmp_path: pathlib.Path) -> None:
    file = written(tmp_path, leak=False, second=True)
    code, _, error = run(f"--graph={file}")
    assert (code, "name one of: train, second" in error) == (2, True)
    assert run(f"--graph={file}", "--train_op=second")[0] == 0
    assert "fetching train, second" in run(f"--graph={file}", "--train_op=train,second")[1]
    code, _, error = run(f"--graph={file}", "--train_op=tarin")
    assert (code, "candidates: train, second" in error) == (2, True)


def test_a_saved_model_is_audited_by_its_tags(run: Call, tmp_path: pathlib.Path) -> None:
    saved = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    for tags in (["serve"], ["train", "gpu"]):
        one = saved.meta_graphs.add()
        one.CopyFrom(meta_graph(leak=False))
        one.meta_info_def.tags.extend(tags)
    (tmp_path / "saved_model.pb").write_bytes(saved.SerializeToString())
    code, text, _ = run(f"--graph={tmp_path}")
    assert (code, "the graph tagged gpu,train, of 2 (serve; gpu,train)" in text) == (0, True)
    assert run(f"--graph={tmp_path}", "--tags=train,gpu")[0] == 0
    code, _, error = run(f"--graph={tmp_path}", "--tags=")
    assert (code, "tags=: no graph has these tags" in error) == (2, True)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "graph=None"),
        (["--graph=nowhere.meta"], "no such file"),
        (["--graph={file}", "--out={folder}/no/audit.json"], "out="),
        (["--graph={file}", "--expect_frozen=belov"], "nearest: below"),
        (["--graph={file}", "--expect_frozen=@nothing"], "is not a group"),
        (["--graph={file}", "--expect_frozen="], "the filter is empty"),
        (["--graph={folder}"], "holds no saved_model.pb"),
        (["--graph={file}", "--train_op="], "at least one op"),
        (["--graph={file}", "surplus"], "unexpected argument 'surplus'; expected only --flags"),
    ],
)
def test_bad_input_is_told_and_ends_with_2(run: Call, tmp_path: pathlib.Path, words: list[str], reason: str) -> None:
    file = written(tmp_path, leak=False)
    code, _, error = run(*(word.format(file=file, folder=tmp_path) for word in words))
    assert code == 2, error
    assert reason in error


def test_a_file_that_cannot_be_imported_is_repaired_or_refused_with_the_reason(
    run: Call, tmp_path: pathlib.Path
) -> None:
    graph = meta_graph(leak=False)
    graph.meta_info_def.tensorflow_version = "0.12.head"
    (tmp_path / "old.meta").write_bytes(graph.SerializeToString())
    code, text, _ = run(f"--graph={tmp_path / 'old.meta'}")
    assert (code, "repaired: tensorflow_version was '0.12.head'" in text) == (0, True)
    graph.graph_def.node.add(name="odd", op="TheirOwnKernel")
    graph.graph_def.node.add(name="train_odd", op="NoOp", input=["^train", "^odd"])
    (tmp_path / "odd.meta").write_bytes(graph.SerializeToString())
    code, text, _ = run(f"--graph={tmp_path / 'odd.meta'}", f"--out={tmp_path / 'odd.json'}")
    assert (code, "graph: left out: what needs 1 kind" in text, "TheirOwnKernel (at odd)" in text) == (0, True, True)
    run(f"--graph={tmp_path / 'old.meta'}", f"--out={tmp_path / 'old.json'}")
    odd, old = (json.loads((tmp_path / name).read_text()) for name in ("odd.json", "old.json"))
    assert odd | {"source": ""} == old | {"source": ""}
    code, _, error = run(f"--graph={tmp_path / 'odd.meta'}", "--train_op=train_odd")
    assert (code, "train_odd needs 1 kind" in error, "TheirOwnKernel (at odd)" in error) == (2, True, True)


def test_a_graph_in_text_is_audited_as_its_meta_file_is(run: Call, tmp_path: pathlib.Path) -> None:
    graph = meta_graph(leak=True)
    (tmp_path / "graph.pbtxt").write_text(str(graph.graph_def))
    (tmp_path / "model.meta").write_bytes(graph.SerializeToString())
    found = []
    for name in ("graph.pbtxt", "model.meta"):
        assert run(f"--graph={tmp_path / name}", "--train_op=train", f"--out={tmp_path / 'a.json'}")[0] == 1
        found.append(json.loads((tmp_path / "a.json").read_text()))
    written = [[(row["path"], row["written"], row["gradient"]) for row in each["variables"]] for each in found]
    assert written[0] == written[1]


def test_no_flipped_byte_or_cut_leads_to_a_traceback(run: Call, tmp_path: pathlib.Path) -> None:
    content = meta_graph_pb2.MetaGraphDef.FromString(pathlib.Path(written(tmp_path, leak=True)).read_bytes())
    for node in content.graph_def.node:
        node.attr.pop("_output_shapes", None)
    whole = content.SerializeToString()
    for number in range(60):
        place = number * 7919 % len(whole)
        damaged = (
            whole[:place] if number % 3 == 0 else whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :]
        )
        (tmp_path / "damaged.meta").write_bytes(damaged)
        code, _, error = run(f"--graph={tmp_path / 'damaged.meta'}")
        assert code in (0, 1, 2), error
        assert "--traceback" not in error, error


def test_a_run_directory_is_audited_and_takes_no_train_op(
    run: Call, tmp_path: pathlib.Path, small_data: pathlib.Path, finetune: Any
) -> None:
    out = tmp_path / "run"
    finetune(
        "--model=cnn:mini", "--weights=none", f"--data=npz:{small_data}", "--eval_fraction=0.2", "--train=head/.*",
        "--steps=2", "--batch_size=8", "--checkpoint_every=1", f"--out={out}",
    )  # fmt: skip
    code, text, _ = run(f"--graph={out}")
    assert (code, "yes, moved" in text) == (0, True)
    assert run(f"--graph={out}", "--expect_frozen=head/.*")[0] == 1
    code, _, error = run(f"--graph={out}", "--train_op=train")
    assert (code, "train_op=['train']: not used with a run directory, which holds no graph" in error) == (2, True)


def test_it_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "scripts.audit_graph", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, "--expect_frozen" in done.stdout, done.stderr) == (0, True, "")


# --- real graphs, checked against what was read off them by hand


def test_the_real_pnet_trains_all_of_its_15_weights_by_momentum(run: Call, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "audit.json"
    assert run(f"--graph={shared('mtcnn_PNet_landmark', 'PNet-18.meta')}", f"--out={out}")[0] == 0
    found = json.loads(out.read_text())
    rows = {row["path"]: row for row in found["variables"]}
    layers = ["conv1", "conv2", "conv3"]
    weights = [f"{layer}/{name}" for layer in layers for name in ("weights", "biases", "alphas")]
    weights += [f"conv4_{n}/{name}" for n in (1, 2, 3) for name in ("weights", "biases")]
    assert set(rows) == {*weights, *(f"{name}/Momentum" for name in weights), "Variable"}
    for name in weights:  # the L2 terms of six kernels make none of them look regularised alone
        assert rows[name] == {
            "path": name,
            "written": True,
            "by": [{"op": f"Momentum/update_{name}/ApplyMomentum", "kind": "optimizer apply"}],
            "gradient": "yes",
            "trainable_collection": True,
            "slots": [f"{name}/Momentum"],
        }
    assert rows["Variable"]["by"] == [{"op": "Momentum", "kind": "assign"}]  # the step counter
    assert found["findings"] == []


def test_the_real_musicnn_trains_24_weights_by_adam_and_moves_12_statistics(run: Call, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "audit.json"
    assert run(f"--graph={shared('musicnn_MTT_vgg', '.meta')}", f"--out={out}")[0] == 0
    found = json.loads(out.read_text())
    rows = {row["path"]: row for row in found["variables"]}
    kinds = {path: {one["kind"] for one in row["by"]} for path, row in rows.items()}
    statistics = [path for path in rows if path.rpartition("/")[2] in ("moving_mean", "moving_variance")]
    weights = [path for path, row in rows.items() if row["trainable_collection"]]
    assert (len(rows), len(weights), len(statistics)) == (86, 24, 12)
    assert all(row["written"] for row in rows.values())
    assert all(kinds[path] == {"UPDATE_OPS"} for path in statistics)
    assert all(kinds[path] == {"optimizer apply"} and rows[path]["gradient"] == "yes" for path in weights)
    assert all(rows[path]["slots"] == [f"{path}/Adam", f"{path}/Adam_1"] for path in weights)
    assert kinds["beta1_power"] == kinds["beta2_power"] == {"assign"}
    assert found["findings"] == []
    code, text, _ = run(
        f"--graph={shared('musicnn_MTT_vgg', '.meta')}", "--expect_frozen=batch_normalization.* !batch_normalization/.*"
    )
    assert code == 1
    assert text.count("(UPDATE_OPS)\n") >= 10
    assert text.count("\nfinding: ") == 5 * 4
