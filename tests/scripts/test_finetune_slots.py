"""finetune goes on from the optimizer slots of a weights file, or says in words why not."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from engine.files import Npz, write_npz

QUICK = ("--model=vit:mini,depth=1", "--eval_fraction=0.2", "--batch_size=16", "--schedule=constant")


@pytest.fixture(scope="module")
def trained(finetune: Any, small_data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A file with weights and Adam slots after two steps of all variables."""
    out = tmp_path_factory.mktemp("first") / "run"
    flags = (*QUICK, f"--data=npz:{small_data}", "--weights=none", "--train=@all", "--steps=2", "--optimizer=adam")
    finetune(*flags, f"--out={out}")
    return out / "checkpoints" / "step-00000002.npz"


def test_a_run_goes_on_from_slots_with_its_betas_and_says_so(
    call: Any, small_data: pathlib.Path, trained: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    def after(name: str, *flags: str) -> tuple[str, dict[str, np.ndarray]]:
        words = (*QUICK, f"--data=npz:{small_data}", f"--weights={trained}", "--steps=1", f"--out={tmp_path / name}")
        code, out, err = call(*words, *flags)
        assert code == 0, err
        with Npz(tmp_path / name / "checkpoints" / "step-00000001.npz") as file:
            return out, {key: file.read(key) for key in file.names()}

    out, gone_on = after("on", "--train=@all", "--optimizer=adam")
    assert "slots:   adam continues from m, v of 24 of 24 trained variables (t = 2)\n" in out
    assert "it goes on with beta1=0.9, beta2=0.999, epsilon=1e-08, epsilon_placement=uncorrected, which slots" in out
    assert gone_on["optimizer/head/kernel/t"] == 3
    with Npz(trained) as file:  # one gradient g later: m = 0.9 * before + 0.1 * g, v = 0.999 * before + 0.001 * g**2
        m, v = (file.read(f"optimizer/norm/gamma/{slot}").astype(np.float64) for slot in "mv")
    gradient = (gone_on["optimizer/norm/gamma/m"] - 0.9 * m) / 0.1
    np.testing.assert_allclose(gone_on["optimizer/norm/gamma/v"], 0.999 * v + 0.001 * gradient**2, rtol=1e-4)

    _, betas = after("betas", "--train=norm/.*", "--optimizer=adam", "--beta1=0.8", "--beta2=0.98", "--epsilon=1e-6")
    gradient = (betas["optimizer/norm/gamma/m"] - 0.8 * m) / 0.2
    np.testing.assert_allclose(betas["optimizer/norm/gamma/v"], 0.98 * v + 0.02 * gradient**2, rtol=1e-4)


def test_where_it_begins_anew_it_says_why(call: Any, small_data: pathlib.Path, trained: pathlib.Path) -> None:
    def told(*flags: str) -> str:
        words = (*QUICK, f"--data=npz:{small_data}", f"--weights={trained}", "--steps=1", "--dry_run")
        code, out, err = call(*words, *flags)
        assert code == 0, err
        return out

    assert "slots: " not in told("--train=@head", "--slots=fresh")
    assert (
        "has the slots m, v, but momentum keeps momentum: it starts from zeros; adam or adamw could continue from them"
        in told("--train=@head", "--optimizer=momentum")
    )
    assert "adamw continues from m, v of 2 of 2 trained variables (t = 2); the slots of 22 others are dropped" in told(
        "--train=@head"
    )


def test_a_damaged_slot_is_named(
    call: Any, small_data: pathlib.Path, trained: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with Npz(trained) as file:
        arrays = {key: file.read(key) for key in file.names()}
    write_npz(tmp_path / "w.npz", arrays.items())
    content = bytearray((tmp_path / "w.npz").read_bytes())
    at = content.find(arrays["optimizer/norm/gamma/m"].tobytes())
    content[at] ^= 1
    (tmp_path / "w.npz").write_bytes(content)
    code, _, err = call(
        *QUICK, f"--data=npz:{small_data}", f"--weights={tmp_path / 'w.npz'}", "--train=@all", "--steps=1",
        f"--out={tmp_path / 'run'}",
    )  # fmt: skip
    assert code == 2
    assert "optimizer/norm/gamma/m: damaged" in err
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("flag", "said"),
    [("--beta2=0.98", "the optimizer sgd has no such hyperparameter"), ("--slots=old", "slots")],
)
def test_flags_that_do_not_fit_are_refused(call: Any, small_data: pathlib.Path, flag: str, said: str) -> None:
    code, _, err = call(*QUICK, f"--data=npz:{small_data}", "--weights=none", "--optimizer=sgd", "--steps=1", flag)
    assert code == 2
    assert said in err


@pytest.mark.slow
def test_a_run_with_the_optimizer_of_an_old_model_resumes_to_the_bit_and_goes_on_elsewhere(
    call: Any, small_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    rule = "rmsprop,momentum=0.9,epsilon=1.0,centered"
    words = [
        *QUICK, f"--data=npz:{small_data}", "--weights=none", "--train=@head", f"--optimizer={rule}", "--steps=3",
        "--clip_norm=1", "--weight_decay=0.1", "--checkpoint_every=1", "--keep=9", "--micro_batches=2", "--ema=0.9",
    ]  # fmt: skip
    code, printed, err = call(*words, f"--out={tmp_path / 'a'}")
    assert code == 0, err
    run = json.loads((tmp_path / "a/run.json").read_text())
    assert run["flags"]["optimizer"] == rule
    assert run["memory"]["slot_bytes"] == run["memory"]["forecast_bytes"]["slots"] == 3 * 4 * (96 * 3 + 3)
    whole = (tmp_path / "a/trained.npz").read_bytes()
    for file in (tmp_path / "a/checkpoints").iterdir():
        if file.name > "step-00000001.npz":
            file.unlink()
    code, _, err = call(*words, f"--out={tmp_path / 'a'}", "--resume")
    assert code == 0, err
    assert (tmp_path / "a/trained.npz").read_bytes() == whole
    code, printed, err = call(
        *QUICK, f"--data=npz:{small_data}", f"--weights={tmp_path / 'a/checkpoints/step-00000003.npz'}", "--train=@head",
        f"--optimizer={rule}", "--steps=1", "--dry_run",
    )  # fmt: skip
    assert code == 0, err
    assert "slots:   rmsprop continues from rms, mg, momentum of 2 of 2 trained variables (t = 3)\n" in printed
    assert "it goes on with rho=0.9, momentum=0.9, epsilon=1, centered=True, epsilon_placement=inside, " in printed
    code, printed, err = call(
        *QUICK,
        f"--data=npz:{small_data}",
        "--weights=none",
        "--train=@head",
        "--optimizer=ftrl",
        "--steps=1",
        "--dry_run",
    )
    assert code == 0, err
    assert "note:    ftrl computes a variable from its slots alone" in printed
