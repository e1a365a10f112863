"""--weights and --rules of finetune: any weights file, and bad ones named with exit code 2."""

from __future__ import annotations

import itertools
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from engine import models
from engine.files import Npz
from engine.selection.variables import name_variables

QUICK = ("--model=vit:mini,depth=1", "--eval_fraction=0.2", "--batch_size=16", "--steps=1", "--train=@head")


@pytest.fixture
def torch_like(tmp_path: pathlib.Path) -> pathlib.Path:
    """A file with names of its own, Linear weights [out, in], and the rules beside it."""
    network = models.build_model("vit:mini,depth=1", image_shape=(16, 16, 1), outputs=9, seed=5).network
    arrays = {}
    for entry in name_variables(network):
        value = entry.variable.numpy()
        name = "net." + entry.path.replace("/", ".")
        arrays[name] = np.ascontiguousarray(value.T) if entry.path.endswith("kernel") else value
    save_file(arrays, tmp_path / "w.safetensors")
    (tmp_path / "my.rules").write_text(
        r"""
        prefix net\.
        (patch|head)/kernel                  <- \1.kernel | transpose(1, 0)
        (patch|head)/bias                    <- \1.bias
        blocks/0/(attention|mlp)/(\w+)/kernel <- blocks.0.\1.\2.kernel | transpose(1, 0)
        blocks/0/(attention|mlp)/(\w+)/bias   <- blocks.0.\1.\2.bias
        blocks/0/(norm1|norm2)/(\w+)          <- blocks.0.\1.\2
        norm/(\w+)                            <- norm.\1
        (class_token|position_embedding)      <- \1
        """
    )
    return tmp_path / "w.safetensors"


def test_weights_of_any_kind_with_rules_of_ones_own(
    call: Any, small_data: pathlib.Path, torch_like: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    flags = (*QUICK, f"--data=npz:{small_data}", f"--weights={torch_like}", f"--out={tmp_path / 'run'}")
    code, printed, error = call(*flags, f"--rules={tmp_path / 'my.rules'}", "--dry_run")
    assert code == 0, error
    assert (
        "weights: w.safetensors, 22 variables loaded by my.rules, 2 tensors skipped; fresh: head/kernel, head/bias"
        in printed
    )
    # without the rules, both sides and the way out are told; nothing is written
    code, _, error = call(*flags)
    assert code == 2, error
    assert "no rule file matches its names; say with --rules=FILE which tensor becomes which variable" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["truncated safetensors", "pickled objects"])
def test_bad_weights_are_named_with_exit_code_2(
    call: Any, small_data: pathlib.Path, torch_like: pathlib.Path, tmp_path: pathlib.Path, kind: str
) -> None:
    path = torch_like
    if kind == "truncated safetensors":
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        path = tmp_path / "w.npz"
        np.savez(path, w=np.array([{}], object))
    code, _, error = call(*QUICK, f"--data=npz:{small_data}", f"--weights={path}", f"--out={tmp_path / 'run'}")
    assert code == 2, error
    assert str(path) in error
    assert ("truncated?" if kind.startswith("truncated") else "never loaded") in error
    assert not (tmp_path / "run").exists()


def test_the_ledger_of_a_run_says_what_came_from_where_and_survives_a_resume(
    call: Any, small_data: pathlib.Path, torch_like: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: Any
) -> None:
    from scripts import cli

    out = tmp_path / "run"
    flags = [*QUICK, "--steps=3", f"--data=npz:{small_data}", f"--weights={torch_like}", f"--out={out}"]
    flags.append(f"--rules={tmp_path / 'my.rules'}")
    steps = itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr(cli.StopSignal, "__call__", lambda _: next(steps) > 1)
        assert call(*flags)[0] == 3
    written = (out / "ledger.json").read_bytes()
    ledger = json.loads(written)
    assert set(ledger) >= {"source", "target", "loaded", "skipped", "unused", "missing", "slots", "parity"}
    assert (ledger["source"], ledger["target"]) == ("w.safetensors", "vit:mini,depth=1")
    by_target = {entry["target"]: entry for entry in ledger["loaded"]}
    assert len(by_target) == 22
    assert by_target["patch/kernel"] == {
        "source": ["net.patch.kernel"],
        "target": "patch/kernel",
        "transforms": ["transpose(1, 0)"],
        "shape": [16, 96],
        "dtype": "float32",
        "confidence": 1.0,
    }
    assert {entry["name"] for entry in ledger["skipped"]} == {"net.head.kernel", "net.head.bias"}
    assert (ledger["unused"], ledger["missing"]) == ([], [])
    assert set(ledger["fresh"]) == {"head/kernel", "head/bias"}
    assert call(*flags, "--resume")[0] == 0
    assert (out / "ledger.json").read_bytes() == written
    # a run that died before its first checkpoint starts anew, and keeps no ledger of what it does not load
    shutil.rmtree(out / "checkpoints")
    assert call(*flags[:-3], "--weights=none", f"--out={out}", "--resume")[0] == 0
    assert not (out / "ledger.json").exists()


def test_rules_without_a_file_are_refused(call: Any) -> None:
    code, _, error = call("--rules=vit_hf")
    assert code == 2, error
    assert "rules=vit_hf: rules say how a file is read, but --weights=auto does not name a file" in error


# --- what images weights want


DINOV2 = {
    "class_token": "embeddings.cls_token",
    "position_embedding": "embeddings.position_embeddings",
    "patch/bias": "embeddings.patch_embeddings.projection.bias",
    "norm/gamma": "layernorm.weight",
    "norm/beta": "layernorm.bias",
    **{f"blocks/0/{norm}/gamma": f"encoder.layer.0.{norm}.weight" for norm in ("norm1", "norm2")},
    **{f"blocks/0/{norm}/beta": f"encoder.layer.0.{norm}.bias" for norm in ("norm1", "norm2")},
    **{
        f"blocks/0/attention/{part}/{kind}": f"encoder.layer.0.attention.{theirs}.{name}"
        for part, theirs in (
            *((which, f"attention.{which}") for which in ("query", "key", "value")),
            ("out", "output.dense"),
        )
        for kind, name in (("kernel", "weight"), ("bias", "bias"))
    },
    **{
        f"blocks/0/mlp/{part}/{kind}": f"encoder.layer.0.mlp.{theirs}.{name}"
        for part, theirs in (("up", "fc1"), ("down", "fc2"))
        for kind, name in (("kernel", "weight"), ("bias", "bias"))
    },
}


@pytest.fixture
def dinov2(tmp_path: pathlib.Path) -> pathlib.Path:
    """Weights of vit:mini,depth=1 on 16x16 colour images, as DINOv2's are written."""
    network = models.build_model("vit:mini,depth=1", image_shape=(16, 16, 3), outputs=3, seed=5).network
    arrays = {}
    for entry in name_variables(network):
        value = entry.variable.numpy()
        if entry.path == "patch/kernel":
            name = "embeddings.patch_embeddings.projection.weight"
            arrays[name] = np.ascontiguousarray(value.reshape(4, 4, 3, -1).transpose(3, 2, 0, 1))
        elif entry.path in DINOV2:
            arrays[DINOV2[entry.path]] = np.ascontiguousarray(value.T) if entry.path.endswith("kernel") else value
    save_file(arrays, tmp_path / "dinov2.safetensors")
    return tmp_path / "dinov2.safetensors"


@pytest.fixture
def colour_data(small_data: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    with np.load(small_data) as npz:
        arrays = {k: np.repeat(npz[k].reshape(-1, 16, 16, 1), 3, -1) if "images" in k else npz[k] for k in npz.files}
    np.savez(tmp_path / "colour.npz", **arrays)
    return tmp_path / "colour.npz"


@pytest.mark.slow
def test_images_are_given_as_the_weights_want_them_and_a_resume_keeps_that(
    call: Any, colour_data: pathlib.Path, dinov2: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: Any
) -> None:
    from scripts import cli

    def start(name: str, *more: str, model: str = "vit:mini,depth=1", code: int = 0) -> tuple[str, list[Any]]:
        flags = [*QUICK, f"--model={model}", f"--data=npz:{colour_data}", f"--weights={dinov2}", "--steps=3"]
        done, printed, err = call(*flags, "--log_every=1", f"--out={tmp_path / name}", *more)
        assert done == code, printed + err
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return printed, [row["eval_loss"] if row["kind"] == "eval" else row["loss"] for row in rows]

    said = "images are scaled as these weights expect (torch; the option preprocess= overrides it)"
    printed, whole = start("weights")
    assert "loaded by dinov2_hf.rules" in printed
    assert said in printed
    assert json.loads((tmp_path / "weights/ledger.json").read_text())["images"] == "torch"
    # said by hand, it is the same run; another is another
    printed, asked = start("asked", model="vit:mini,depth=1,preprocess=torch")
    assert said not in printed
    assert asked == whole
    printed, others = start("others", model="vit:mini,depth=1,preprocess=tf")
    assert said not in printed
    assert others[0] != whole[0]
    # a resume reads no weights file, and keeps what it said
    steps = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(cli.StopSignal, "__call__", lambda _: next(steps) >= 1)
        start("parts", code=3)
    printed, parts = start("parts", "--resume")
    assert said in printed
    assert parts == whole
    with Npz(tmp_path / "weights/trained.npz") as one, Npz(tmp_path / "parts/trained.npz") as other:
        assert one.read("head/kernel").tobytes() == other.read("head/kernel").tobytes()


def test_images_of_three_channels_are_refused_where_the_data_are_grey(
    call: Any, small_data: pathlib.Path, torch_like: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    flags = [*QUICK, f"--data=npz:{small_data}", f"--out={tmp_path / 'run'}"]
    said = "preprocess=torch is for images with 3 channels, but these have 1"
    code, _, err = call(*flags, "--model=vit:mini,depth=1,preprocess=torch", "--weights=none")
    assert (code, said in err) == (2, True), err
    rules = tmp_path / "my.rules"
    rules.write_text(rules.read_text() + "\nimages torch\n")
    code, _, err = call(*flags, f"--weights={torch_like}", f"--rules={rules}")
    assert (code, said in err) == (2, True), err
    assert not (tmp_path / "run").exists()
