"""port_checkpoint, run as a program: there with slots and proof, back byte for byte, and what it refuses."""

from __future__ import annotations

import importlib
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from engine import porting
from engine.files import Npz

v1 = tf.compat.v1

MODEL = """
import keras

def build(image_shape=(4, 4, 1), outputs=3):
    images = keras.Input(image_shape)
    x = keras.layers.Flatten()(images)
    x = keras.layers.Dense(5, activation="relu", name="hidden")(x)
    return keras.Model(images, keras.layers.Dense(outputs, name="head")(x), name="small")
"""
RULES = """
(hidden|head)/kernel <- net/\\1/weights
(hidden|head)/bias <- net/\\1/biases
"""


TOWERS = """
import keras

def build(image_shape=(4, 4, 1), outputs=3):
    images = keras.Input(image_shape)
    x = keras.layers.Flatten()(images)
    one, other = (keras.layers.Dense(5, name=name, use_bias=False)(x) for name in ("alpha_net", "omega_net"))
    return keras.Model(images, one + other)
"""


class Old(NamedTuple):
    folder: pathlib.Path
    prefix: pathlib.Path
    target: str
    rules: pathlib.Path


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Old:
    """A TF1 program's checkpoint after three steps of Adam, with averages, its graph, and a Keras model for it."""
    folder = tmp_path_factory.mktemp("old")
    (folder / "small_model.py").write_text(MODEL)
    (folder / "small.rules").write_text(RULES)
    rng = np.random.default_rng(0)
    with tf.Graph().as_default():
        v1.set_random_seed(1)
        images = v1.placeholder(tf.float32, [None, 4, 4, 1], name="images")
        x = tf.reshape(images, [-1, 16])
        with v1.variable_scope("net"):
            for name, units in (("hidden", 5), ("head", 3)):
                with v1.variable_scope(name):
                    kernel = v1.get_variable("weights", [x.shape[-1], units])
                    x = tf.nn.bias_add(tf.matmul(x, kernel), v1.get_variable("biases", [units]))
                x = tf.nn.relu(x) if name == "hidden" else x
        logits = tf.identity(x, name="logits")
        train = v1.train.AdamOptimizer(0.01).minimize(tf.reduce_mean(tf.square(logits)))
        averages = v1.train.ExponentialMovingAverage(0.5)
        with tf.control_dependencies([train]):
            train = averages.apply(v1.trainable_variables())
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            for _ in range(3):
                session.run(train, {images: rng.standard_normal((6, 4, 4, 1))})
            prefix = v1.train.Saver().save(session, str(folder / "model.ckpt"), global_step=3)
    return Old(folder, pathlib.Path(prefix), "py:small_model:build", folder / "small.rules")


class Ran(NamedTuple):
    """What all commands did, run one after the other in one process: (exit code, stdout, stderr) by name."""

    out: pathlib.Path
    said: dict[str, tuple[int, str, str]]

    def ok(self, name: str, code: int = 0) -> str:
        found, printed, error = self.said[name]
        assert found == code, f"{found}:\n{printed}\n{error}"
        return printed if code < 2 else error


@pytest.fixture(scope="module")
def ran(old: Old, run_each: Any, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    out = tmp_path_factory.mktemp("out")
    bad = out / "bad"
    bad.mkdir()
    index, numbers = ".index", ".data-00000-of-00001"
    (bad / f"m{index}").write_bytes(pathlib.Path(f"{old.prefix}{index}").read_bytes())
    (bad / f"m{numbers}").write_bytes(bytes(byte ^ 1 for byte in pathlib.Path(f"{old.prefix}{numbers}").read_bytes()))
    np.savez(out / "changed.npz", **changed(old))
    delta = {name: array for name, array in changed(old).items() if name.startswith("head/")}
    np.savez(out / "delta.npz", **delta)
    np.savez(out / "two.npz", **changed(old) | {"optimizer/head/bias/t": np.asarray(5)})
    (out / "run/checkpoints").mkdir(parents=True)
    np.savez(out / "run/trained.npz", **delta)
    np.savez(out / "run/checkpoints/step-00000002.npz", **changed(old))
    source, rules, graph = f"--source={old.prefix}", f"--rules={old.rules}", f"{old.prefix}.meta"
    commands = {
        "there": [source, "--auto", "--slots=Adam", f"--verify_graph={graph}", "--outputs=logits", f"--out={out}/new/small.npz"],
        "back": [
            "--reverse", f"--source={out}/new/small.npz", f"--rules={out}/new/small.rules", f"--base={old.prefix}",
            f"--graph={graph}", f"--out={out}/back/model.ckpt-3",
        ],
        "averages": [f"--source={old.folder}", rules, "--take_ema", "--slots=auto", f"--out={out}/averages/a.npz"],
        "no base": ["--reverse", f"--source={out}/changed.npz", rules, f"--out={out}/v1/old", "--format=V1"],
        "changed": [
            "--reverse", f"--source={out}/changed.npz", rules, f"--base={old.prefix}", f"--out={out}/changed/model",
        ],
        "delta": [
            "--reverse", f"--source={out}/delta.npz", rules, f"--base={old.prefix}", f"--graph={graph}", f"--out={out}/delta/model",
        ],
        "delta of a run": ["--reverse", f"--source={out}/run/trained.npz", rules, f"--out={out}/run/model"],
        "two counts": ["--reverse", f"--source={out}/two.npz", rules, f"--base={old.prefix}", f"--out={out}/two/model"],
        "delta alone": ["--reverse", f"--source={out}/delta.npz", rules, f"--out={out}/refused/model"],
        "expected": [source, f"--rules={old.folder}/expecting.rules", f"--out={out}/expected/a.npz"],
        "unlike": [source, f"--rules={old.folder}/unlike.rules", f"--out={out}/unlike/a.npz"],
        "tags": [source, rules, f"--verify_graph={graph}", "--tags=serve", "--outputs=logits"],
        "serves": [source, rules, f"--verify_graph={out}/saved", "--outputs=logits", "--inputs=images[None,4,4,1]"],
        "trains": [source, rules, f"--verify_graph={out}/saved", "--outputs=logits", "--inputs=images", "--tags=train"],
        "lonely tags": [source, rules, "--tags=serve", "--dry_run"],
        "dry": [source, rules, "--dry_run", f"--out={out}/dry/a.npz"],
        "damaged": [f"--source={bad}/m", rules, f"--out={out}/damaged/a.npz"],
        "name": [source, f"--out={out}/refused/a.txt"],
        "kind": [source, rules, "--slots=Momentum", f"--out={out}/refused/a.npz"],
        "rules": [source, f"--out={out}/refused/a.npz"],
        "itself": ["--reverse", f"--source={out}/new/small.npz", rules, f"--base={old.prefix}", f"--out={old.prefix}"],
        "bound": [source, rules, "--bound=1e-3", "--seed=2", f"--out={out}/refused/a.npz"],
        "no time": [source, rules, f"--verify_graph={graph}", "--time_limit=0", "--dry_run"],
        "betas": [source, rules, "--beta1=0.8", f"--out={out}/refused/a.npz"],
        "seeded": [source, rules, f"--verify_graph={graph}", f"--feed={out}/x.npz", "--examples=2", "--dry_run"],
        "sized": [source, rules, "--target=file:x.keras", "--image_size=32", "--dry_run"],
        "channels": [source, rules, "--channels=1", "--dry_run"],
        "keras": [source, rules, f"--out={out}/keras/small.weights.h5"],
        "wrong": [
            source, rules, f"--verify_graph={graph}", "--outputs=logits", f"--out={out}/wrong/small.npz",
            "--target=py:wrong_model:build",
        ],
    }  # fmt: skip
    (old.folder / "towers_model.py").write_text(TOWERS)
    kernels = {"left/kernel:0": np.ones((16, 5), np.float32), "right/kernel:0": np.zeros((16, 5), np.float32)}
    np.savez(out / "towers.npz", **kernels, **{"left/kernel/Adam:0": np.ones((16, 5), np.float32)})
    towers = [f"--source={out}/towers.npz", "--target=py:towers_model:build", "--auto"]
    commands |= {
        "first proposal": [*towers, f"--out={out}/towers/t.npz"],
        "yes after it": [*towers, "--yes", f"--out={out}/towers/t.npz"],
        "again without": [*towers, f"--out={out}/towers/t.npz"],
        "yes after an edit": [*towers, "--yes", f"--out={out}/edited/t.npz"],
    }
    (out / "edited").mkdir()
    (out / "edited/t.rules").write_text("# mine\n")
    save_two_graphs(pathlib.Path(graph), out / "saved")
    for name, units in (("expecting", 3), ("unlike", 4)):
        (old.folder / f"{name}.rules").write_text(
            f"{RULES}\nexpect net/head/weights shape 5,{units}\nexpect logits op Identity\n"
        )
    (old.folder / "wrong_model.py").write_text(MODEL.replace('"relu"', '"tanh"'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(old.folder))
        asked = [[f"--target={old.target}", *words] for words in commands.values()]
        found = run_each("scripts.port_checkpoint", asked)
    return Ran(out, dict(zip(commands, found, strict=True)))


def save_two_graphs(meta: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes a SavedModel of the graph itself, without tags, and of another network, tagged train."""
    one = meta_graph_pb2.MetaGraphDef.FromString(meta.read_bytes())
    other = meta_graph_pb2.MetaGraphDef.FromString(meta.read_bytes())
    next(node for node in other.graph_def.node if node.op == "Relu").op = "Tanh"
    other.meta_info_def.tags.append("train")
    folder.mkdir()
    saved = saved_model_pb2.SavedModel(saved_model_schema_version=1, meta_graphs=[other, one])
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString())


def changed(old: Old) -> dict[str, np.ndarray]:
    """Weights and slots as a run would leave them, each number another than the checkpoint's."""
    file = reader(old.prefix)
    found: dict[str, np.ndarray] = {}
    for layer in ("hidden", "head"):
        for new, name in (("kernel", "weights"), ("bias", "biases")):
            found[f"{layer}/{new}"] = file.get_tensor(f"net/{layer}/{name}") + 1
            for slot, end in (("m", "Adam"), ("v", "Adam_1")):
                found[f"optimizer/{layer}/{new}/{slot}"] = file.get_tensor(f"net/{layer}/{name}/{end}") + 2
            found[f"optimizer/{layer}/{new}/t"] = np.asarray(7, np.int64)
    return found


def reader(prefix: pathlib.Path) -> Any:
    return tf.train.load_checkpoint(str(prefix))


def test_the_last_line_says_whether_anything_was_verified(ran: Ran) -> None:
    for name in ("averages", "dry", "keras", "expected"):
        assert ran.ok(name).splitlines()[-1].startswith("NOT VERIFIED: nothing shows that the model computes what"), (
            name
        )
    assert "VERIFIED" not in ran.ok("there")
    assert ran.ok("wrong", 1).splitlines()[-1].startswith("NOT EQUAL")


def test_what_rules_expect_of_the_graph_is_checked_before_anything_is_written(ran: Ran) -> None:
    assert "facts:   what expecting.rules expects of the graph holds (2 lines, " in ran.ok("expected")
    said = ran.ok("unlike", 2)
    assert "another network than unlike.rules" in said
    assert "net/head/weights (VarHandleOp): shape is 5,3, not 5,4 (unlike.rules:5)" in said
    assert not (ran.out / "unlike/a.npz").exists()


def test_tags_are_for_a_saved_model(ran: Ran) -> None:
    assert "holds one graph; only a SavedModel has several" in ran.ok("tags", 2)
    assert "tags: only used with --verify_graph" in ran.ok("lonely tags", 2)


def test_of_a_saved_model_with_two_graphs_the_one_that_serves_is_compared(ran: Ran) -> None:
    assert "graph:   the graph without tags, of 2 (train; (no tags)); tags= chooses another" in ran.ok("serves")
    assert "graph:   the graph tagged train, of 2" in ran.ok("trains", 1)
    assert "NOT EQUAL" in ran.ok("trains", 1)


def test_there_with_slots_and_proof_and_back_byte_for_byte(old: Old, ran: Ran) -> None:
    printed = ran.ok("there")
    assert "after 3 steps (known from beta1_power" in printed
    ledger = json.loads((ran.out / "new/ledger.json").read_text())
    assert set(ledger) >= {"source", "target", "loaded", "skipped", "unused", "missing", "slots", "parity"}
    assert ledger["parity"]["max_abs_difference"] <= 1e-6
    assert [output["name"] for output in ledger["parity"]["outputs"]] == ["logits:0"]
    explained = {name for entry in ledger["loaded"] for name in entry["source"]}
    explained |= {entry["name"] for entry in ledger["skipped"]}
    explained |= {name for entry in ledger["slots"] for name in entry["source"]}
    assert explained == set(reader(old.prefix).get_variable_to_shape_map())
    assert ledger["unused"] == ledger["missing"] == []
    assert all(0.8 <= entry["confidence"] < 1 for entry in ledger["loaded"])
    with Npz(ran.out / "new/small.npz") as file:
        assert len(file.names()) == 4 + 8 + 4
        for path, name in (("hidden/kernel", "net/hidden/weights"), ("head/bias", "net/head/biases")):
            np.testing.assert_array_equal(file.read(path), reader(old.prefix).get_tensor(name))
            np.testing.assert_array_equal(
                file.read(f"optimizer/{path}/v"), reader(old.prefix).get_tensor(f"{name}/Adam_1")
            )
            assert file.read(f"optimizer/{path}/t") == 3
    assert "# 0.9" in (ran.out / "new/small.rules").read_text()  # a confidence on every line
    ran.ok("back")
    for end in (".index", ".data-00000-of-00001"):
        assert (ran.out / f"back/model.ckpt-3{end}").read_bytes() == pathlib.Path(f"{old.prefix}{end}").read_bytes()


def test_proposed_rules_load_the_old_checkpoint_itself_with_its_slots_set_aside(
    old: Old, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(old.folder))
    model = importlib.import_module("small_model").build()
    ledger = porting.load(model, old.prefix, ran.out / "new/small.rules")  # as finetune --weights --rules does
    np.testing.assert_array_equal(
        model.get_layer("head").kernel.numpy(), reader(old.prefix).get_tensor("net/head/weights")
    )
    assert {entry.name for entry in ledger.skipped} == set(reader(old.prefix).get_variable_to_shape_map()) - {
        f"net/{layer}/{role}" for layer in ("hidden", "head") for role in ("weights", "biases")
    }


def test_doubtful_lines_are_listed_and_yes_accepts_them_after_a_first_proposal(ran: Ran) -> None:
    found, printed, _ = ran.said["first proposal"]
    assert found == 2
    left = printed[printed.index("left to you (2):") :]
    assert all(f"\n  {name}/kernel <- " in left for name in ("alpha_net", "omega_net"))
    assert "--yes accepts the doubtful lines too" in left
    assert "left to you" not in ran.ok("yes after it")
    assert (ran.out / "towers/t.npz").exists()
    assert ran.said["again without"][0] == 2
    assert "exists and differs from the proposal" in ran.ok("yes after an edit", code=2)
    assert (ran.out / "edited/t.rules").read_text() == "# mine\n"


def test_averages_are_taken(old: Old, ran: Ran) -> None:
    ran.ok("averages")
    with Npz(ran.out / "averages/a.npz") as file:
        kernel = file.read("hidden/kernel")
    np.testing.assert_array_equal(kernel, reader(old.prefix).get_tensor("net/hidden/weights/ExponentialMovingAverage"))
    assert not np.array_equal(kernel, reader(old.prefix).get_tensor("net/hidden/weights"))


def test_what_changed_goes_back_with_its_slots(old: Old, ran: Ran) -> None:
    ran.ok("no base")
    ran.ok("changed")
    assert not (ran.out / "v1/old.index").exists()
    arrays, before = changed(old), reader(old.prefix)
    for prefix in (ran.out / "v1/old", ran.out / "changed/model"):
        found = reader(prefix)
        np.testing.assert_array_equal(found.get_tensor("net/hidden/weights"), arrays["hidden/kernel"])
        np.testing.assert_array_equal(found.get_tensor("net/head/biases/Adam"), arrays["optimizer/head/bias/m"])
        assert found.get_tensor("beta1_power") == pytest.approx(0.9**8)
    average = "net/head/biases/ExponentialMovingAverage"  # no rule touches it
    np.testing.assert_array_equal(found.get_tensor(average), before.get_tensor(average))


def test_a_delta_goes_back_with_the_rest_of_the_base_or_of_its_run(old: Old, ran: Ran) -> None:
    """Frozen variables keep the bits of the base; those of a run that began elsewhere are in its checkpoints."""
    assert "delta.npz, 2 variables; the other 2 from " in ran.ok("delta")
    arrays, before, found = changed(old), reader(old.prefix), reader(ran.out / "delta/model")
    for name in before.get_variable_to_shape_map():
        new = {"net/head/weights": arrays["head/kernel"], "net/head/biases": arrays["head/bias"]}.get(name)
        np.testing.assert_array_equal(found.get_tensor(name), before.get_tensor(name) if new is None else new, name)
    assert "4 by rule, of which 2 changed" in ran.ok("delta")
    assert "run/checkpoints/step-00000002.npz" in ran.ok("delta of a run")
    found = reader(ran.out / "run/model")
    np.testing.assert_array_equal(found.get_tensor("net/hidden/weights"), arrays["hidden/kernel"])
    np.testing.assert_array_equal(found.get_tensor("net/head/weights"), arrays["head/kernel"])
    error = ran.ok("delta alone", code=2)
    assert "it holds only 2 variables of the model, as what a run trained does, and lacks 2" in error
    assert "--base=CHECKPOINT, the old checkpoint, has the rest" in error


def test_slots_of_different_ages_say_that_adams_powers_are_left_out(ran: Ran) -> None:
    assert "left out: the powers of Adam's betas: the variables have made 5 to 7 steps" in ran.ok("two counts")


def test_a_proof_that_fails_writes_no_weights(ran: Ran) -> None:
    assert "NOT EQUAL" in ran.ok("wrong", code=1)
    assert [file.name for file in (ran.out / "wrong").iterdir()] == ["ledger.json"]
    assert json.loads((ran.out / "wrong/ledger.json").read_text())["parity"]["max_abs_difference"] > 1e-3


def test_keras_weights(old: Old, ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    ran.ok("keras")
    monkeypatch.syspath_prepend(str(old.folder))
    model = importlib.import_module("small_model").build()
    model.load_weights(ran.out / "keras/small.weights.h5")
    np.testing.assert_array_equal(
        model.get_layer("head").kernel.numpy(), reader(old.prefix).get_tensor("net/head/weights")
    )


def test_a_dry_run_writes_the_ledger_alone_and_damage_writes_nothing(ran: Ran) -> None:
    assert "4 variables by small.rules" in ran.ok("dry")
    assert [file.name for file in (ran.out / "dry").iterdir()] == ["ledger.json"]
    error = ran.ok("damaged", code=2)
    assert "4 tensors are damaged" in error
    assert "net/head/biases" in error
    assert list((ran.out / "damaged").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("name", "expected a name that ends in .npz or .weights.h5"),
        ("kind", "the checkpoint has slots of Adam"),
        ("rules", "no rule file matches its names"),
        ("itself", "is the base itself; choose another prefix"),
        ("bound", "bound, seed: only used with --verify_graph"),
        ("betas", "beta1: only used with --slots or --reverse"),
        ("no time", "time_limit=0.0: expected a number above 0"),
        ("seeded", "examples: not used with --feed="),
        ("sized", "image_size: file:x.keras already defines its images"),
        ("channels", "channels=1 also needs --image_size"),
    ],
)
def test_bad_flags_are_named_and_write_nothing(ran: Ran, name: str, message: str) -> None:
    assert message in ran.ok(name, code=2)
    folder = ran.out / "refused"
    assert not folder.exists() or list(folder.iterdir()) == []
