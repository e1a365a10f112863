"""frostline migrate from the outside: a page, an exit code, and a folder whose commands work as they are printed."""

from __future__ import annotations

import json
import pathlib
from typing import Any, NamedTuple

import made_graphs
import numpy as np
import old_projects
import pytest
import tensorflow as tf

from compat_v1.migration.commands import Command

MODEL = """
import keras

def build(image_shape=(6, 6, 1), outputs=4):
    images = keras.Input(image_shape)
    x = keras.layers.Dense(5, name="hidden")(keras.layers.Flatten()(images))
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(name="bn", epsilon=1e-3)(x))
    return keras.Model(images, keras.layers.Dense(outputs, name="last")(x), name="small")
"""


class Ran(NamedTuple):
    folder: pathlib.Path
    said: dict[str, tuple[int, str, str]]

    def commands(self, name: str, out: str = "out") -> list[list[str]]:
        """The words of the commands of a way, in a folder that was written."""
        found = json.loads((self.folder / out / "migrate.json").read_text())
        return next(way["commands"] for way in found["ways"] if way["name"] == name)


@pytest.fixture(scope="module")
def ran(run_each: Any, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("migrate")
    (folder / "made").mkdir()
    made = made_graphs.write_graph(
        folder / "made", old_projects.network, dtype=tf.float32, optimizer="momentum", shape=old_projects.SHAPE
    )
    old_projects.write_model_dir(folder / "run", made)
    for name in ("full", "bad"):
        (folder / name).mkdir()
    (folder / "full" / "notes").write_text("mine")
    old_projects.copy_checkpoint(made.with_suffix(""), folder / "bad" / "model")
    old_projects.copy_checkpoint(made.with_suffix(""), folder / "alone" / "model", graph=False)
    for name in ("one", "two"):
        old_projects.copy_checkpoint(made.with_suffix(""), folder / "many" / name)
    (folder / "bad" / "model.data-00000-of-00001").write_bytes(b"short")
    (folder / "small_model.py").write_text(MODEL)
    old = f"--old={folder}/run"
    asked = {
        "page": [f"--old={folder}/alone"],
        "out": [old, f"--out={folder}/out"],
        "again": [old, f"--out={folder}/out"],
        "full": [old, f"--out={folder}/full"],
        "inside": [old, f"--out={folder}/run/report"],
        "file": [old, f"--out={folder}/small_model.py"],
        "damaged": [f"--old={folder}/bad", f"--out={folder}/of_bad"],
        "nothing": [f"--old={folder}/full"],
        "missing": [f"--old={folder}/rum"],
        "none": [],
        "target": [old, "--target=py:small_model:build", f"--out={folder}/ported"],
        "wrong": [old, "--target=keras:NoSuchNet"],
        "choice": [f"--old={folder}/many", f"--out={folder}/of_many"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        said = dict(zip(asked, run_each("scripts.migrate", list(asked.values())), strict=True))
    return Ran(folder, said)


def test_the_page_is_printed_and_nothing_is_written(ran: Ran) -> None:
    code, printed, error = ran.said["page"]
    assert (code, error) == (0, "")
    assert printed.startswith(f"# {ran.folder}/alone: a folder with a checkpoint")
    assert "### Train the graph here: no" in printed
    assert "written:" not in printed


def test_a_folder_holds_the_page_the_commands_and_a_ledger(ran: Ran) -> None:
    code, printed, _ = ran.said["out"]
    assert code == 0
    out = ran.folder / "out"
    assert sorted(path.name for path in out.iterdir()) == ["commands.sh", "ledger.json", "migrate.json", "migrate.md"]
    assert (out / "migrate.md").read_text() in printed
    found = json.loads((out / "migrate.json").read_text())
    assert found["format"] == 1
    assert found["graphs"][0]["audit"]["findings"] == []
    assert [way["name"] for way in found["ways"]][:3] == ["train", "port", "parity"]
    assert len(json.loads((out / "ledger.json").read_text())["loaded"]) == 8


def test_a_folder_that_is_not_empty_or_part_of_the_old_project_is_refused(ran: Ran) -> None:
    for name, expected in {
        "again": "the folder is not empty (it holds commands.sh)",
        "full": "the folder is not empty (it holds notes)",
        "inside": "which is only read; name a folder outside of it",
        "file": "expected a folder",
    }.items():
        code, printed, error = ran.said[name]
        assert (code, printed) == (2, ""), name
        assert expected in error, name
    assert [path.name for path in (ran.folder / "full").iterdir()] == ["notes"]


def test_damage_is_exit_code_1_and_the_report_is_written(ran: Ran) -> None:
    code, printed, _ = ran.said["damaged"]
    assert code == 1
    assert "## Damage" in printed
    assert "model.data-00000-of-00001" in printed
    assert (ran.folder / "of_bad" / "migrate.md").is_file()


def test_bad_input_is_exit_code_2_with_a_way_out(ran: Ran) -> None:
    for name, expected in {
        "nothing": "nothing of TensorFlow 1 was found; it holds notes",
        "missing": "there is no such file, folder or checkpoint; nearest: ",
        "none": "expected `frostline migrate OLD`",
        "wrong": "NoSuchNet",
        "choice": "choose one with --checkpoint=NAME",
    }.items():
        code, _, error = ran.said[name]
        assert code == 2, (name, error)
        assert expected in error, (name, error)
    assert not (ran.folder / "of_many").exists()


def complete(folder: pathlib.Path, words: list[str]) -> list[str]:
    """The flags of a printed command, with what it asks for."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (80, 6, 6, 1), dtype=np.uint8), np.arange(80, dtype=np.int32) % 4
    np.savez(folder / "data.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    assert words[0] == "finetune"
    return Command(tuple(words[1:])).complete({"DATA": f"npz:{folder}/data.npz", "PREPROCESS": "unit"})


def test_the_printed_command_looks_at_the_training(ran: Ran, run_each: Any) -> None:
    ((code, printed, error),) = run_each("scripts.finetune", [complete(ran.folder, ran.commands("train")[0])])
    assert code == 0, (printed, error)
    assert "hidden/kernel" in printed


@pytest.mark.slow
def test_the_printed_command_trains_the_graph(ran: Ran, run_each: Any) -> None:
    words = [
        *complete(ran.folder, ran.commands("train")[1]),
        f"--out={ran.folder}/trained",
        "--steps=2",
        "--batch_size=8",
    ]
    ((code, printed, error),) = run_each("scripts.finetune", [words])
    assert code == 0, (printed, error)
    run = json.loads((ran.folder / "trained" / "run.json").read_text())
    assert set(run["phases"][0]["trained"]) >= {"hidden/kernel", "last/bias"}


def test_the_printed_commands_port_the_weights_with_the_proposed_rules(ran: Ran, run_each: Any) -> None:
    code, printed, _ = ran.said["target"]
    assert code == 0
    assert "every variable of py:small_model:build has its source, by proposed rules (--auto)" in printed
    assert (ran.folder / "ported" / "proposed.rules").is_file()
    ledger = json.loads((ran.folder / "ported" / "ledger.json").read_text())
    assert len(ledger["loaded"]) == 8
    port, parity = ran.commands("port", "ported")[-1][1:], ran.commands("parity", "ported")[0][1:]
    port = [word.replace("ported/weights.npz", f"{ran.folder}/npz/weights.npz") for word in port]
    rules = [word for word in parity if word != "--auto"] + [f"--rules={ran.folder}/ported/proposed.rules"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ran.folder))
        for code, printed, error in run_each("scripts.port_checkpoint", [port, parity, rules]):
            assert code == 0, (printed, error)
    assert (ran.folder / "npz" / "weights.npz").is_file()
    assert "NOT" not in printed, "the last command compared the port with its graph"


def test_the_folder_may_be_named_without_a_flag(ran: Ran, programs: Any) -> None:
    done = programs.run(["-m", "scripts.migrate", "--noverify", f"{ran.folder}/alone"])
    assert done.returncode == 0, done.stderr
    assert "damage was not looked for" in done.stdout
