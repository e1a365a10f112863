"""frostline apply-delta and frostline diff, as they are typed: what they print, write, refuse and return."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import numpy as np
import pytest

from engine import select
from engine.files import Npz, write_npz
from engine.models import build_model
from engine.runs import records
from engine.selection.variables import name_variables


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """base.npz, delta.npz on it, and other.npz, a base with one bit flipped."""
    folder = tmp_path_factory.mktemp("files")
    network = build_model("cnn:mini", image_shape=(8, 8, 1), outputs=3, seed=1).network
    arrays = {entry.path: entry.variable.numpy() for entry in name_variables(network)}
    write_npz(folder / "base.npz", arrays.items())
    selection = select(network, "@head")
    for entry in selection.trained:
        entry.variable.assign(np.full(entry.shape, 0.5, np.float32))
    records.write_trained(folder / "delta.npz", selection.variables, [selection])
    arrays["stages/0/conv/kernel"] = arrays["stages/0/conv/kernel"].copy()
    arrays["stages/0/conv/kernel"].reshape(-1).view(np.uint8)[0] ^= 1
    write_npz(folder / "other.npz", arrays.items())
    return folder


def test_apply_delta_writes_and_refuses(files: pathlib.Path, run_each: Any, tmp_path: pathlib.Path) -> None:
    base, delta, out = f"--base={files}/base.npz", f"--delta={files}/delta.npz", tmp_path / "whole.npz"
    (tmp_path / "there").mkdir()
    asked = [
        [base, delta, f"--out={out}"],
        [f"--base={files}/other.npz", delta, f"--out={tmp_path}/no.npz"],
        [f"--base={files}/other.npz", delta, f"--out={tmp_path}/forced.npz", "--force_base"],
        [base, delta],
        [base, f"--delta={files}/missing.npz", f"--out={tmp_path}/no.npz"],
        [base, f"--delta={files}/base.npz", f"--out={tmp_path}/no.npz"],
        [base, delta, f"--out={tmp_path}/there"],
        [base, delta, f"--out={tmp_path}/missing/no.npz"],
    ]
    done = run_each("scripts.apply_delta", asked)
    assert [code for code, _, _ in done] == [0, 2, 0, 2, 2, 2, 2, 2]
    assert f"delta:   {files}/delta.npz, 2 of 22 variables\n" in done[0][1]
    assert f"written: {out}, 22 tensors, of which 2 differ from the base\n" in done[0][1]
    for said, (_, _, error) in zip(
        [
            "what differs (1): stages/0/conv/kernel: other values. Give the weights",
            "",
            "--out is required",
            "there is no such file",
            "does not say which weights it belongs to",
            "expected the name of a file",
            "is not a folder",
        ],
        done[1:],
        strict=True,
    ):
        assert said in error
    assert "forced" in done[2][1]
    assert sorted(os.listdir(tmp_path)) == ["forced.npz", "there", "whole.npz"]
    with Npz(out) as npz:
        assert (npz.read("head/bias") == 0.5).all()


def test_diff_tells_what_differs_and_its_exit_code_whether(
    files: pathlib.Path, run_each: Any, tmp_path: pathlib.Path
) -> None:
    base, other, delta = f"{files}/base.npz", f"{files}/other.npz", f"{files}/delta.npz"
    asked = [
        [f"--first={base}", f"--second={base}"],
        [f"--first={base}", f"--second={other}", f"--out={tmp_path}/d.json"],
        [f"--first={base}", f"--second={base}+{delta}", "--show=1"],
        [f"--first={base}", f"--second={delta}"],
        [f"--first={base}"],
        [f"--first={base}", f"--second={files}/no.npz"],
        [f"--first={base}", f"--second={other}+{delta}"],
    ]
    done = run_each("scripts.diff", asked)
    assert [code for code, _, _ in done] == [0, 1, 1, 1, 2, 2, 2]
    assert "equal: 22 tensors" in done[0][1]
    assert "stages/0        " in done[1][1]
    found = json.loads((tmp_path / "d.json").read_text())
    assert (found["tensors"], found["differing"], list(found["differences"])) == (22, 1, ["stages/0/conv/kernel"])
    assert found["differences"]["stages/0/conv/kernel"]["elements"] == 1
    assert "2 of 22 tensors differ" in done[2][1]
    assert "... and 1 more" in done[2][1]
    assert "only in the first" in done[3][1]
    assert "it belongs to other weights" in done[6][2]


def test_two_words_are_the_files(files: pathlib.Path, programs: Any) -> None:
    words = ["-m", "scripts", "diff", f"{files}/base.npz", f"{files}/other.npz"]
    done = programs.run(words)
    assert done.returncode == 1, done.stderr
    assert "1 of 22 tensors differ" in done.stdout
