"""A run with adapters: its delta, its resume, what opens it, and what it leaves behind without adapters."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import FinetuneConfig, InputError, Task, apply_delta, finetune, select, tensorflow_private
from engine.export.opening import open_subject
from engine.export.update import push_delta
from engine.files import Npz, write_npz
from engine.models import build_model
from engine.recipes.finetune import RunResult
from engine.recipes.opening import open_model
from engine.recipes.reopen import OpenedRun, open_run
from engine.recipes.resuming import resume_config
from engine.runs import picture, records
from engine.selection.variables import name_variables

MODEL = "vit:mini,depth=1"
ADAPT = "lora:rank=2 @attention; ssf @norm"


def values(network: Any) -> dict[str, np.ndarray]:
    return {entry.path: entry.variable.numpy() for entry in name_variables(network)}


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


def relative(one: Any, other: Any) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


class Runs:
    """``whole`` has four steps in one go; ``base`` is what it began with."""

    def __init__(self, folder: pathlib.Path, data: pathlib.Path) -> None:
        self.folder, self.data = folder, f"npz:{data}"
        network = build_model(MODEL, image_shape=(16, 16, 1), outputs=3, seed=7).network
        self.base = folder / "base.npz"
        self.first = values(network)
        write_npz(self.base, {k: v for k, v in self.first.items() if not k.startswith("head/")}.items())
        self.lines: list[str] = []
        self.whole = self.train("whole", steps=4, checkpoint_every=2, learning_rate=0.02)
        self.delta = str(folder / "whole/trained.npz")
        self.images = tf.constant(np.random.default_rng(1).random((5, 16, 16, 1), np.float32))

    def config(self, name: str, **given: Any) -> FinetuneConfig:
        fields = {"model": MODEL, "data": self.data, "weights": str(self.base), "adapt": ADAPT}
        return FinetuneConfig(**(fields | {"batch_size": 16, "cache": "off", "out": str(self.folder / name)} | given))

    def train(self, name: str, **given: Any) -> RunResult:
        return finetune(self.config(name, **given))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, small_data: pathlib.Path) -> Iterator[Runs]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "draw_curves", lambda *_: None)
        patch.setattr(picture, "draw", lambda *_: None)
        yield Runs(tmp_path_factory.mktemp("runs"), small_data)
    tensorflow_private.disable_op_determinism()


@pytest.fixture(scope="module")
def opened(runs: Runs) -> OpenedRun:
    return open_run(runs.whole.out)


def test_adapters_and_the_head_train_and_the_base_keeps_every_bit(runs: Runs) -> None:
    (phase,) = runs.whole.run["phases"]
    assert all(path.startswith("head/") or "/lora/" in path or "/ssf/" in path for path in phase["trained"])
    assert len(phase["trained"]) == 2 + 4 * 2 + 3 * 2
    assert phase["freeze_proof"] == {"verified": True, "variables": len(runs.first) - 2, "changed": []}
    last = values(runs.whole.network)
    assert all(
        last[path].tobytes() == runs.first[path].tobytes() for path in runs.first if not path.startswith("head/")
    )
    with Npz(runs.delta) as npz:
        assert set(npz.names()) == set(phase["trained"])


def test_what_opens_a_run_attaches_the_adapters(runs: Runs, opened: OpenedRun, tmp_path: pathlib.Path) -> None:
    last = values(runs.whole.network)
    assert equal(values(opened.network), last)
    assert equal({entry.path: entry.variable.numpy() for entry in opened.variables}, last)
    copy = tmp_path / "copy"
    shutil.copytree(runs.whole.out, copy)
    for file in (copy / "checkpoints").iterdir():
        file.write_bytes(file.read_bytes()[:-50])  # all are damaged: the base and the delta are left
    assert equal(values(open_run(copy).network), last)
    shutil.rmtree(copy / "checkpoints")
    assert equal(values(open_run(copy).network), last)


def test_base_and_delta_are_the_model_with_its_adapters(runs: Runs) -> None:
    weights = f"{runs.base}+{runs.delta}"
    given: dict[str, Any] = {"data": runs.data, "model": MODEL, "batch_size": 16}
    task = Task.open(**given, weights=weights, adapt=ADAPT)
    assert equal(values(task.model.network), values(runs.whole.network))
    assert equal({entry.path: entry.variable.numpy() for entry in task.variables}, values(runs.whole.network))
    with pytest.raises(
        InputError, match=r"it belongs to a model with adapters; give --adapt='lora:rank=2 @attention; ssf"
    ):
        Task.open(**given, weights=weights)
    with pytest.raises(InputError, match="the file does not fit the model"):
        Task.open(**given, weights=weights, adapt="lora:rank=3 @attention")
    whole = Task.open(**given, weights=f"{runs.whole.out}/checkpoints/step-00000004.npz", adapt=ADAPT)
    assert equal(values(whole.model.network), values(runs.whole.network))
    found = open_model(f"{MODEL},classes=3", weights, classes=3, image_size=16)  # the delta says which adapters
    assert equal(values(found.network), values(runs.whole.network))


def test_a_delta_without_adapters_is_put_onto_the_base_before_they_are_attached(runs: Runs) -> None:
    given: dict[str, Any] = {"data": runs.data, "model": MODEL, "batch_size": 16}
    plain = Task.open(**given, weights=str(runs.base))
    selection = select(plain.variables, "norm/.*")
    for entry in selection.trained:
        entry.variable.assign_add(entry.variable + 1.0)
    records.write_trained(runs.folder / "plain.npz", plain.variables, [selection])
    mixed = Task.open(**given, weights=f"{runs.base}+{runs.folder}/plain.npz", adapt=ADAPT)
    now = mixed.variables.by_path()
    assert now["norm/gamma"].variable.numpy()[0] == 3.0
    assert "norm/ssf/scale" in now


def test_a_resume_has_the_bits_of_a_run_in_one_go(runs: Runs) -> None:
    out = runs.folder / "resumed"
    shutil.copytree(runs.whole.out, out)
    (out / "run.json").unlink()
    (out / "checkpoints/step-00000004.npz").unlink()
    with pytest.raises(
        InputError, match="--adapt: 'lora:rank=2 @attention; ssf @norm' in the checkpoint, 'ssf @norm' now"
    ):
        resume_config(out, {"adapt": "ssf @norm"})
    result = finetune(resume_config(out, {}))
    assert result.run["steps"] == 4
    assert equal(values(result.network), values(runs.whole.network))


def test_an_export_has_no_adapters_and_computes_the_same(runs: Runs, opened: OpenedRun) -> None:
    said: list[str] = []
    subject = open_subject(runs.whole.out, say=said.append)
    assert [entry.path for entry in subject.variables] == list(runs.first)
    # 4 kernels, and gamma and beta of 3 norms
    assert "adapters: merged into 10 variables; the model has none any more" in said
    assert set(subject.trained) == {"head/kernel", "head/bias"} | {
        *(f"blocks/0/attention/{name}/kernel" for name in ("query", "key", "value", "out")),
        *(f"{norm}/{name}" for norm in ("blocks/0/norm1", "blocks/0/norm2", "norm") for name in ("gamma", "beta")),
    }
    assert relative(subject.network(runs.images), opened.network(runs.images)) < 1e-6


@pytest.mark.parametrize("base", ["base", "word"])
def test_apply_delta_merges(runs: Runs, opened: OpenedRun, base: str, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "whole.npz"
    if base == "word":  # the run's own base is a file; as a word it must be refused, since its values are others
        with pytest.raises(InputError, match="it belongs to other weights than none"):
            apply_delta("none", runs.delta, out)
        return
    done = apply_delta(runs.base, runs.delta, out)
    assert len(done.changed) == 10 + 2
    assert "adapters merged into 10 variables" in done.texts[0]
    plain = build_model(MODEL, image_shape=(16, 16, 1), outputs=3).network
    with Npz(out) as npz:
        assert set(npz.names()) == set(runs.first)
        for entry in name_variables(plain):
            entry.variable.assign(npz.read(entry.path))
    assert relative(plain(runs.images), opened.network(runs.images)) < 1e-6


def test_apply_delta_without_the_run_says_what_it_needs(runs: Runs, tmp_path: pathlib.Path) -> None:
    shutil.copy(runs.delta, tmp_path / "alone.npz")
    with pytest.raises(InputError, match="the folder does not hold a run"):
        apply_delta(runs.base, tmp_path / "alone.npz", tmp_path / "out.npz")
    apply_delta(runs.base, tmp_path / "alone.npz", tmp_path / "out.npz", run=runs.whole.out)


def test_a_delta_with_adapters_is_not_pushed_into_a_merged_model(runs: Runs, tmp_path: pathlib.Path) -> None:
    exported = tmp_path / "exported"
    (exported / "variables").mkdir(parents=True)
    record = {"format": 1, "kind": "savedmodel", "data_names": None, "load_delta": {"arguments": {}}}
    (exported / "export.json").write_text(json.dumps(record))
    prefix = str(exported / "variables/variables")
    names = [f"weights/{path}/.ATTRIBUTES/VARIABLE_VALUE" for path in runs.first]
    tensors = [tf.constant(value) for value in runs.first.values()]
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)
    with pytest.raises(InputError, match=r"it holds adapters .* merged into its kernels; `frostline export --run=RUN"):
        push_delta(exported, runs.delta, tmp_path / "pushed")
    assert not (tmp_path / "pushed").exists()


def test_a_bottleneck_is_exported_as_it_is_and_not_written_as_whole_weights(runs: Runs, tmp_path: pathlib.Path) -> None:
    result, said = runs.train("bottleneck", adapt="adapter:size=2 @mlp", steps=1), list[str]()
    subject = open_subject(result.out, say=said.append)
    assert "adapters: 2 bottleneck adapters cannot be merged" in " ".join(said)
    assert equal(values(subject.network), values(result.network))
    network, _ = subject.rebuild()
    assert values(network).keys() == values(result.network).keys()
    with pytest.raises(InputError, match="a bottleneck adapter has a nonlinearity"):
        apply_delta(runs.base, f"{result.out}/trained.npz", tmp_path / "out.npz")


BAD = {
    "graph": ({"model": "graph:old.pb", "loss": "softmax"}, "which has no layers to adapt"),
    "depth": ({"plan": "depth", "memory_budget": "4GB"}, "give --plan=micro_batches"),
    "syntax": ({"adapt": "lora @mlp"}, "lora needs its rank"),
}


@pytest.mark.parametrize("case", BAD)
def test_contradictions_are_refused_before_anything_is_opened(case: str) -> None:
    given, said = BAD[case]
    with pytest.raises(InputError, match=said):
        FinetuneConfig(**({"adapt": ADAPT} | given))


def test_what_does_not_fit_is_refused_before_weights_are_read(runs: Runs) -> None:
    with pytest.raises(InputError, match="more than the rank that"):
        runs.train("bad", adapt="lora:rank=200 @mlp", weights="missing.npz", steps=1)
    with pytest.raises(InputError, match="no phase trains an adapter; add @adapters"):
        runs.train("bad", train="@head", steps=1)
    assert not (runs.folder / "bad").exists()
