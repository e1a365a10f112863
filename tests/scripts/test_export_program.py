"""The programs export and push_delta: what they print, their exit codes, and that nothing is left half written."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")
RunEach = Callable[..., list[tuple[int, str, str]]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, small_data: pathlib.Path) -> pathlib.Path:
    """Two runs from the same weights, one that kept averages; and one that has not finished."""
    import shutil

    from engine.recipes.config import FinetuneConfig
    from engine.recipes.finetune import finetune
    from engine.runs import picture, records

    folder = tmp_path_factory.mktemp("runs")
    given = {"model": "cnn:mini", "weights": "none", "train": "@head", "data": f"npz:{small_data}", "batch_size": 16}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "draw_curves", lambda *_: None)
        patch.setattr(picture, "draw", lambda *_: None)
        for name, steps in (("a", 2), ("b", 3)):
            fields = {"ema": 0.5, "keep_best": True, "deterministic": False, "cache": "off"}
            finetune(FinetuneConfig(**given, **fields, steps=steps, out=str(folder / name)))
    shutil.copytree(folder / "a", folder / "unfinished")
    (folder / "unfinished" / "run.json").unlink()
    return folder


@pytest.mark.slow
def test_export_and_push_delta_from_the_command_line(
    runs: pathlib.Path, run_each: RunEach, tmp_path: pathlib.Path
) -> None:
    saved, data = tmp_path / "saved", tmp_path / "moved.npz"
    data.write_bytes(pathlib.Path(json.loads((runs / "a/flags.json").read_text())["flags"]["data"][4:]).read_bytes())
    run = f"--run={runs / 'a'}"
    asked = [
        [run, f"--out={saved}"],
        [run, f"--out={saved}"],
        [run, "--format=tflite", "--quantize=int8", "--calibration_examples=8", "--max_accuracy_loss=0.5", "--yes"],
        [run, "--format=tflite", "--updatable=@head", f"--out={tmp_path / 'phone'}"],
        [run, "--ema", "--checkpoint=best", f"--data=npz:{data}", f"--out={tmp_path / 'best'}"],
        [run, "--format=safetensors", "--rules=vit_hf"],
        [run, "--format=tflite", "--quantize=int4"],
        [f"--run={tmp_path / 'no'}"],
        [f"--run={runs / 'unfinished'}", f"--out={tmp_path / 'unfinished'}"],
        [f"--run={runs / 'unfinished'}", f"--out={tmp_path / 'unfinished'}", "--checkpoint=last"],
        [f"--run={runs / 'b'}", f"--delta_for={saved}", f"--out={tmp_path / 'delta.npz'}"],
        [run, f"--out={tmp_path / 'phone/export.json/below'}"],
        [],
    ]
    found = run_each("scripts.export", asked)
    assert [code for code, _, _ in found] == [0, 2, 0, 0, 0, 2, 2, 2, 2, 0, 0, 2, 2], found
    assert "written: " in found[0][1]
    assert "checked on 6 examples" in found[0][1]
    assert "it exists, and is never replaced" in found[1][2]
    assert "ms per image" in found[2][1]
    record = json.loads((runs / "a/export/tflite-int8/export.json").read_text())
    assert {"bytes", "checked", "class_names", "images", "run"} <= set(record)
    assert "quantize" in found[6][2]
    assert "--checkpoint=last takes its last checkpoint" in found[8][2]
    assert not (runs / "a/export/safetensors-hf").exists()
    pushed = [
        [f"--to={saved}", f"--delta={runs / 'b/trained.npz'}", f"--out={tmp_path / 'updated'}"],
        [f"--to={saved}", f"--delta={tmp_path / 'delta.npz'}", f"--out={tmp_path / 'other'}"],
        [f"--to={tmp_path / 'phone'}", f"--delta={runs / 'b/trained.npz'}", f"--out={tmp_path / 'head.npz'}"],
        [f"--to={saved}", f"--delta={runs / 'b/run.json'}", f"--out={tmp_path / 'bad'}"],
        [f"--to={tmp_path / 'best'}", f"--delta={runs / 'b/trained.npz'}", f"--out={tmp_path / 'f'}", "--force_base"],
        [f"--to={saved}"],
    ]
    found = run_each("scripts.push_delta", pushed)
    assert [code for code, _, _ in found] == [0, 0, 0, 2, 0, 2], found
    assert "updated: 2 variables" in found[0][1]
    with np.load(tmp_path / "head.npz") as head:
        assert sorted(head) == ["head_bias", "head_kernel"]
    assert not list(tmp_path.rglob("*.tmp"))
    assert not (tmp_path / "bad").exists()


def test_mistakes_end_with_exit_code_2_and_leave_nothing(run_each: RunEach, tmp_path: pathlib.Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    run, out = f"--run={tmp_path / 'no'}", f"--out={place / 'new'}"
    asked = [
        ([run, out], "there is no such folder"),
        ([run, f"--out={place}"], "it exists, and is never replaced"),
        ([run, out, "--quantize=int8"], "it applies to --format=tflite"),
        ([run, out, "--format=tflite", "--updatable=@head", "--quantize=int8"], "an int8 model has no variables"),
        ([run, out, "--max_accuracy_loss=2"], "max_accuracy_loss=2.0"),
        ([f"--run={place}", out], "does not hold a run"),
    ]
    found = run_each("scripts.export", [words for words, _ in asked])
    for (code, _, err), (_, said) in zip(found, asked, strict=True):
        assert (code, said in err) == (2, True), err
    ((code, _, err),) = run_each("scripts.push_delta", [[f"--to={place}", "--delta=x.npz", out]])
    assert (code, "it is not an export" in err) == (2, True), err
    assert not list(place.iterdir())
