"""migrate says what an old project is, what is damaged in it, and which ways lead on from it."""

from __future__ import annotations

import json
import os
import pathlib
import pickle
import shutil
import subprocess
import zipfile
from typing import Any

import frozen_graphs
import made_graphs
import numpy as np
import old_projects
import pytest
import tensorflow as tf
from google.protobuf import text_format

from compat_v1.migration.commands import ASKED, Command
from compat_v1.migration.investigate import Question, investigate
from compat_v1.migration.report import Report
from compat_v1.migration.training import Chosen
from engine.errors import InputError

v1 = tf.compat.v1
SHARED = pathlib.Path(os.environ.get("FROSTLINE_SHARED") or pathlib.Path(__file__).resolve().parents[4] / "shared")


def real(*parts: str) -> pathlib.Path:
    place = SHARED.joinpath(*parts)
    if not place.exists():
        pytest.skip(f"{'/'.join(parts)} is neither in $FROSTLINE_SHARED nor in ../shared")
    return place


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A graph with its checkpoint, trained by Momentum."""
    folder = tmp_path_factory.mktemp("made")
    return made_graphs.write_graph(
        folder, old_projects.network, dtype=tf.float32, optimizer="momentum", shape=old_projects.SHAPE
    )


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory, made: pathlib.Path) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("estimator") / "run"
    old_projects.write_model_dir(folder, made)
    return folder


@pytest.fixture(scope="module")
def found(model_dir: pathlib.Path) -> Report:
    return look(model_dir)


def look(path: Any, **given: Any) -> Report:
    chosen = Chosen(
        **{name: given.pop(name) for name in ("tags", "inputs", "outputs", "graph_inputs") if name in given}
    )
    return investigate(path, Question(chosen=chosen, **given))


def way(report: Report, name: str) -> Any:
    return next(each for each in report.ways if each.name == name)


def words(report: Report, name: str) -> list[str]:
    return list(way(report, name).commands[0].words)


def test_the_model_dir_of_an_estimator_is_told_file_by_file(found: Report) -> None:
    report = found
    page = report.page()
    assert "the model_dir of an Estimator" in page
    for line in (
        "model.ckpt-10: checkpoint, with its graph beside it",
        "model.ckpt-20: checkpoint, with its graph beside it (the one that is looked at)",
        "graph.pbtxt: the graph of a training run as text",
        "eval: 1 file of summaries of the evaluations",
        "export/best/1500000009/saved_model.pb: a SavedModel: 1 graph, with the tags: serve",
        "slots of Momentum for 6 variables",
        "no moving averages",
        "no damage: every tensor was read",
        "trainable collection: 6 variables; update operations of statistics: 2",
        "audit: 0 findings",
        "is_training=True in training, False else",
    ):
        assert line in page, line
    assert len(page.splitlines()) < 110
    assert not report.damage
    assert not report.question


def test_the_flags_to_train_the_graph_are_those_that_were_found(model_dir: pathlib.Path, found: Report) -> None:
    report = found
    assert way(report, "train").possible
    assert words(report, "train") == [
        "finetune",
        f"--model=graph:{model_dir}/model.ckpt-20.meta,preprocess=$PREPROCESS",
        "--inputs=x",
        "--graph_inputs=is_training=True/False",
        "--outputs=logits",
        "--train=@all",
        "--loss=softmax",
        "--data=$DATA",
        "--dry_run",
    ]
    assert "no activation says what its outputs mean" in report.page()
    assert words(report, "parity")[3:] == [
        "--auto",
        f"--verify_graph={model_dir}/model.ckpt-20.meta",
        "--inputs=x,is_training=False",
        "--outputs=logits",
        "--dry_run",
    ]


def test_the_first_ledger_accounts_for_every_tensor(model_dir: pathlib.Path, found: Report) -> None:
    report = found
    assert report.ledger is not None
    loaded = {each["target"] for each in report.ledger["loaded"]}
    assert loaded == {
        *(f"{layer}/{name}" for layer in ("hidden", "last") for name in ("kernel", "bias")),
        *(f"bn/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")),
    }
    assert "Momentum" in json.dumps(report.ledger["skipped"])
    names = [name for name, _ in tf.train.list_variables(str(model_dir / "model.ckpt-20"))]
    told = [*(name for each in report.ledger["loaded"] for name in each["source"])]
    told += [each["name"] for each in report.ledger["skipped"]] + report.ledger["unused"]
    assert sorted(told) == sorted(names)


def test_several_checkpoints_without_a_choice_are_listed(model_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(model_dir, folder)
    (folder / "checkpoint").unlink()
    report = look(folder)
    assert "model.ckpt-10, model.ckpt-20; choose one with --checkpoint=NAME" in report.question
    assert not any(each.possible for each in report.ways)
    chosen = look(folder, checkpoint="model.ckpt-10")
    assert not chosen.question
    assert chosen.chosen == f"{folder}/model.ckpt-10"
    assert "model.ckpt-10.meta" in words(chosen, "train")[1]
    with pytest.raises(
        InputError, match=r"checkpoint=model.ckpt-30: there is no such checkpoint.*nearest: model.ckpt-"
    ):
        look(folder, checkpoint="model.ckpt-30")


def test_damaged_files_are_named_and_the_rest_is_reported(model_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(model_dir, folder)
    data = folder / "model.ckpt-10.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:100])
    (folder / "model.ckpt-20.meta").write_bytes(b"\x0a\x05damaged")
    (folder / "export" / "best" / "1500000000" / "saved_model.pb").write_bytes(b"")
    (folder / "model.ckpt-5.data-00000-of-00001").write_bytes(b"data without an index")
    report = look(folder)
    told = "\n".join(report.damage)
    for name in (data.name, "model.ckpt-20.meta", "1500000000/saved_model.pb", "model.ckpt-5.index is missing"):
        assert name in told, told
    assert way(report, "train").possible, "the export and graph.pbtxt are whole"
    assert "1500000009" in words(report, "train")[1]
    assert report.weights[1].data["parameters"] > 0


def test_a_damaged_checkpoint_leads_nowhere(made: pathlib.Path, tmp_path: pathlib.Path) -> None:
    old_projects.copy_checkpoint(made.with_suffix(""), tmp_path / "model")
    data = tmp_path / "model.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[5] ^= 0xFF
    data.write_bytes(content)
    report = look(tmp_path)
    assert len(report.damage) == 1
    assert "damaged" in report.damage[0]
    assert not any(each.possible for each in report.ways)
    assert "was not looked for" in look(tmp_path, verify=False).page()


def test_a_saved_model_of_several_graphs_names_its_tags(made: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "hub"
    old_projects.write_saved_model(
        folder, old_projects.read_meta(made), made.with_suffix(""), [[], ["train"], ["a", "b"]]
    )
    (folder / "tfhub_module.pb").write_bytes(b"\x08\x03")
    report = look(folder)
    assert "a module of TensorFlow Hub" in report.page()
    assert "with the tags: (no tags); train; a,b" in report.page()
    assert "--tags=" in words(report, "train")
    chosen = look(folder / "saved_model.pb", tags=("b", "a"))
    assert "--tags=a,b" in words(chosen, "train")
    assert "--tags=a,b" in words(chosen, "parity")
    with pytest.raises(InputError, match="no graph has these tags; the file holds 3 graphs"):
        look(folder, tags=("serve",))
    (folder / "variables" / "variables.index").unlink()
    assert "no checkpoint lies beside it" in way(look(folder), "train").reason


def test_several_projects_in_a_folder_are_listed(made: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for name in ("one", "other"):
        old_projects.write_saved_model(tmp_path / name, old_projects.read_meta(made), made.with_suffix(""), [["serve"]])
    report = look(tmp_path)
    assert "it holds 2 graphs with weights of their own" in report.question
    assert "/other/" in report.question


def test_a_graph_or_a_checkpoint_alone_is_told(made: pathlib.Path, tmp_path: pathlib.Path) -> None:
    prefix = made.with_suffix("")
    assert way(look(prefix), "train").possible
    old_projects.copy_checkpoint(prefix, tmp_path / "alone", graph=False)
    for path in (tmp_path / "alone.index", tmp_path):
        report = look(path)
        assert "no graph was found" in way(report, "train").reason
        assert way(report, "port").possible is None
        assert report.ledger is not None
        assert len(report.ledger["unused"]) == 8
    (tmp_path / "graph.pbtxt").write_text(text_format.MessageToString(old_projects.read_meta(made).graph_def))
    report = look(tmp_path)
    assert f"--weights={tmp_path}/alone" in words(report, "train"), "the graph as text has no checkpoint of its own"
    lone = look(tmp_path / "graph.pbtxt")
    assert "no checkpoint lies beside it" in way(lone, "train").reason
    assert lone.ledger is None


def test_a_checkpoint_that_does_not_fit_the_graph_is_told_from_both_sides(
    made: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with tf.Graph().as_default(), v1.Session() as session:
        v1.get_variable("other/kernel", [3, 3])
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(tmp_path / "model"), write_meta_graph=False)
    shutil.copy(made, tmp_path / "model.meta")
    reason = way(look(tmp_path), "train").reason
    assert "8 of 8 variables are not in it" in reason
    assert "other/kernel" in reason


def test_a_frozen_graph_is_its_own_weights(tmp_path: pathlib.Path) -> None:
    frozen = frozen_graphs.convolutional(fused=True)
    (tmp_path / "model.pb").write_bytes(frozen.definition.SerializeToString())
    report = look(tmp_path / "model.pb")
    assert "frozen graph" in report.page()
    assert way(report, "train").possible, report.page()
    assert way(report, "parity").possible
    assert report.ledger is not None
    assert report.ledger["loaded"]


def unsafe(x: Any, dtype: Any) -> Any:
    text = v1.io.read_file("/etc/hostname")
    number = tf.cast(tf.size(v1.strings.split([text]).values), dtype)
    return made_graphs.dense(tf.reshape(x, [-1, 36]) * number, made_graphs.CLASSES, "last", dtype)


def test_what_a_graph_must_not_do_is_named_and_not_done(tmp_path: pathlib.Path) -> None:
    path = made_graphs.write_graph(tmp_path, unsafe, dtype=tf.float32, shape=old_projects.SHAPE)
    report = look(tmp_path)
    assert "ReadFile" in way(report, "train").reason
    assert not way(report, "train").possible
    assert not way(report, "parity").possible
    meta = old_projects.read_meta(path)
    next(node for node in meta.graph_def.node if node.op == "ReadFile").op = "OperationOfALibrary"
    path.write_bytes(meta.SerializeToString())
    report = look(tmp_path)
    assert "does not know: OperationOfALibrary" in report.page()
    assert "OperationOfALibrary" in way(report, "train").reason


def test_each_of_several_outputs_has_a_command(tmp_path: pathlib.Path) -> None:
    def two(x: Any, dtype: Any) -> Any:
        flat = tf.reshape(x, [-1, 36])
        scores = tf.identity(made_graphs.dense(flat, 3, "labels", dtype), name="scores")
        tf.square(scores - v1.placeholder(dtype, [None, 3], name="target"), name="distance")
        return made_graphs.dense(flat, made_graphs.CLASSES, "last", dtype)

    made_graphs.write_graph(tmp_path, two, dtype=tf.float32, shape=old_projects.SHAPE)
    report = look(tmp_path)
    ends = [
        [word for word in each.words if word.startswith(("--outputs", "--loss"))]
        for each in way(report, "train").commands
    ]
    assert sorted(ends) == [["--outputs=logits", "--loss=softmax"], ["--outputs=scores", "--loss=softmax"]]
    assert {each["target"] for each in report.ledger["loaded"]} >= {"labels/kernel", "last/kernel"}  # type: ignore[index]
    outputs = next(word for word in words(report, "parity") if word.startswith("--outputs"))
    assert sorted(outputs.partition("=")[2].split(",")) == ["logits", "scores"]


def write_foreign(folder: pathlib.Path) -> dict[str, str]:
    """Writes files of other kinds; returns the name of each and words of what is said about it."""
    with zipfile.ZipFile(folder / "model.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        archive.writestr("model.weights.h5", b"")
    (folder / "old.bin").write_bytes(pickle.dumps({}, protocol=4))
    (folder / "model.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    (folder / "model.tflite").write_bytes(bytes(4) + b"TFL3" + bytes(64))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "model.onnx").write_bytes(b"\x08\x07")
    np.savez(folder / "weights.npz", a=np.zeros(2))
    return {
        "model.pt": "a pickle, as PyTorch writes it, which is never loaded",
        "model.keras": "a whole Keras model; `frostline finetune --model=file:",
        "old.bin": "never loaded",
        "model.h5": "a Keras HDF5 file",
        "model.tflite": "a TensorFlow Lite model; no command reads it back",
        "model.safetensors": "a safetensors file; `frostline inspect-checkpoint --source=",
        "model.onnx": "an ONNX model; no command reads it",
        "weights.npz": "an .npz file of arrays",
    }


def test_files_of_other_kinds_are_told_with_what_reads_them(tmp_path: pathlib.Path) -> None:
    for name, expected in write_foreign(tmp_path).items():
        with pytest.raises(InputError) as error:
            look(tmp_path / name)
        assert expected in str(error.value), name
    (tmp_path / "only").mkdir()
    shutil.copy(tmp_path / "model.tflite", tmp_path / "only" / "model.tflite")
    with pytest.raises(
        InputError, match=r"nothing of TensorFlow 1 was found; it holds .*model.tflite \(a TensorFlow Lite"
    ):
        look(tmp_path / "only")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(InputError, match="it is a run of Frostline"):
        look(tmp_path / "run")


def test_what_is_not_there_or_not_known_is_an_error_with_a_way_out(tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("notes")
    for name, expected in {
        "empty": "it holds no file",
        "notes.txt": "not a file of TensorFlow 1 that is known; expected a folder",
        "note.txt": "there is no such file, folder or checkpoint; nearest: notes.txt",
        "no/such/folder": "there is no such file",
    }.items():
        with pytest.raises(InputError, match=expected):
            look(tmp_path / name)


def test_what_lies_around_is_not_taken_for_damage(
    made: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = tmp_path / "train"
    for step in (1, 2):
        old_projects.copy_checkpoint(made.with_suffix(""), train / f"model.ckpt-{step}")
    (train / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-2"\n')
    (tmp_path / "label_map.pbtxt").write_text("item {\n  id: 1\n  name: 'cat'\n}\n")
    (tmp_path / "pipeline.config").write_text("model {}\n")
    (tmp_path / "keras_metadata.pb").write_bytes(b"\x0a\x00")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    report = look(".")
    assert not report.damage
    assert report.chosen == f"{train}/model.ckpt-2"
    assert "train/checkpoint: names the latest checkpoint, model.ckpt-2" in report.page()
    assert look(".", checkpoint="train/model.ckpt-1").chosen == f"{train}/model.ckpt-1"
    (train / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-3"\n')
    assert "names the latest checkpoint, model.ckpt-3, which is not there" in look(train).page()
    assert "train/model.ckpt-1, train/model.ckpt-2; choose one" in look(".").question


def test_a_graph_of_integers_is_refused_and_not_damaged(tmp_path: pathlib.Path) -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 4], "x")
        kernel = tf.constant(np.ones([4, 3], np.int32), name="kernel")
        tf.cast(tf.matmul(tf.cast(x, tf.int32), kernel), tf.float32, name="y")
    (tmp_path / "model.pb").write_bytes(graph.as_graph_def().SerializeToString())
    report = look(tmp_path)
    assert not report.damage
    assert not way(report, "train").possible, report.page()
    assert "weight" in way(report, "train").reason
    assert "weight" in way(report, "port").reason


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"outputs": "logitz"}, r"outputs=logitz: .* has no operation logitz; nearest: logits"),
        ({"inputs": "y"}, r"inputs=y: .* has no operation y"),
        ({"graph_inputs": "training=True"}, r"graph_inputs=training: .* has no operation training"),
        ({"graph_inputs": "is_training"}, r"graph_inputs=is_training: expected NAME=VALUE"),
        ({"inputs": "x[None"}, r"inputs=x\[None: expected NAME"),
    ],
)
def test_what_the_user_names_must_be_there(made: pathlib.Path, given: dict[str, str], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        look(made, **given)


def test_what_the_user_names_is_in_the_commands(made: pathlib.Path) -> None:
    report = look(made, inputs="hidden/BiasAdd[None,5],is_training=False", outputs="logits")
    assert "--inputs=hidden/BiasAdd[None,5],is_training=False" in words(report, "train")
    assert not any("graph_inputs" in word for word in words(report, "train"))
    assert "--inputs=hidden/BiasAdd[None,5],is_training=False" in words(report, "parity")
    report = look(made, graph_inputs="is_training=False/False")
    assert "--graph_inputs=is_training=False/False" in words(report, "train")


def test_tags_without_a_saved_model_are_an_error(made: pathlib.Path) -> None:
    with pytest.raises(InputError, match=r"tags=serve: .* holds no SavedModel"):
        look(made, tags=("serve",))


def test_names_of_others_are_shown_and_passed_on_as_they_are(made: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "it's $HOME; \x1bc\nodd"
    old_projects.copy_checkpoint(made.with_suffix(""), folder / "model")
    report = look(folder)
    assert "\x1b" not in report.page()
    assert report.page().splitlines()[0].startswith("# ")
    out, stub = tmp_path / "out", tmp_path / "bin"
    out.mkdir()
    stub.mkdir()
    (stub / "frostline").write_text('#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done; printf "\\n"\n')
    (stub / "frostline").chmod(0o755)
    report.write(out)
    environment = {"PATH": f"{stub}:{os.environ['PATH']}", **dict.fromkeys(ASKED, "unit")}
    for each in report.ways:
        command = ["sh", str(out / "commands.sh"), each.name]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        expected = [
            "".join(f"{word}\0" for word in one.complete(dict.fromkeys(ASKED, "unit"))) for one in each.commands
        ]
        assert ran == "".join(f"{text}\n" for text in expected)
    bare = {"PATH": environment["PATH"]}
    unasked = subprocess.run(
        ["sh", str(out / "commands.sh"), "train"], env=bare, capture_output=True, text=True, check=False
    )
    assert unasked.returncode
    assert "PREPROCESS: the values of images on which the graph was trained" in unasked.stderr


def test_a_command_keeps_its_words_in_a_shell() -> None:
    command = Command(("finetune", "--data=$DATA", "--graph_inputs=a=True b=0.5/1.0", "--out=it's $HERE"))
    assert (
        str(command) == """frostline finetune --data="$DATA" '--graph_inputs=a=True b=0.5/1.0' '--out=it'"'"'s $HERE'"""
    )
    assert command.asked() == ["DATA"]


@pytest.mark.parametrize(
    ("parts", "train", "port"),
    [
        pytest.param(("tf1_checkpoints", "mtcnn_PNet_landmark"), True, True, marks=pytest.mark.slow),
        pytest.param(("tf1_checkpoints", "musicnn_MTT_vgg"), True, True, marks=pytest.mark.slow),
        pytest.param(("models", "graphdef", "posenet.pb"), True, None, marks=pytest.mark.slow),
        pytest.param(("models", "savedmodel_mobilenetv2", "module"), False, None, marks=pytest.mark.slow),
        (("tf1_checkpoints", "made_v1format_pnet"), False, True),
        (("tf1_checkpoints", "t2t_transformer"), False, None),
        (("tf1_checkpoints", "serving_half_plus_two_v1format"), False, None),
        (("tf1_checkpoints", "bleurt_index_only"), False, False),
        pytest.param(("faults", "46_two_graphs", "m"), True, None, marks=pytest.mark.slow),
        (("models", "graphdef", "emotion.pb"), True, None),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else str(value),
)
def test_real_projects_lead_on(parts: tuple[str, ...], train: bool, port: bool | None) -> None:
    report = look(real(*parts))
    assert way(report, "train").possible is train, report.page()
    assert way(report, "port").possible is port, report.page()
    assert bool(report.damage) == (parts[-1] == "bleurt_index_only")
    assert len(report.page().splitlines()) < 90


def test_all_kinds_of_damage_of_the_collection_are_named() -> None:
    report = look(real("tf1_checkpoints", "made_corrupt"))
    for name in ("data_bitflip", "data_missing", "data_truncated", "index_bitflip", "index_truncated", "lfs_pointer"):
        assert any(name in line for line in report.damage), name
