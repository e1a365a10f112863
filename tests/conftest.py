"""What tests of many rooms share: programs run as a user runs them, and tiny real data."""

from __future__ import annotations

import gc
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import forked
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the programs do, whose results tests compare to the bit
# Tests run in parallel: more threads than cores only wait for one another.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

gc.disable()  # until the libraries and all tests are imported: a third of the time that collecting them takes

Program = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session", autouse=True)
def libraries() -> None:
    """Imports the large libraries, and has no garbage collection look through them again: a fifth of all time."""
    import keras  # noqa: F401
    import tensorflow  # noqa: F401

    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)  # functions that are traced make very many objects, few of them garbage


@pytest.fixture(scope="module", autouse=True)
def _determinism_off_again() -> Iterator[None]:
    """Op determinism off after each file: a run in this process switches it on, and later files draw without seeds."""
    from engine.tensorflow_private import disable_op_determinism

    yield
    disable_op_determinism()


@pytest.fixture(scope="session")
def programs() -> Iterator[forked.Programs]:
    """Runs Python programs without the time that their start takes."""
    found = forked.Programs()
    yield found
    found.close()


@pytest.fixture(scope="session")
def finetune(programs: forked.Programs) -> Program:
    """Runs ``python -m scripts.finetune`` with flags; checks that no traceback reaches the user."""

    def run(*flags: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = programs.run(["-m", "scripts.finetune", *flags])
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        assert done.returncode == code, f"exit code {done.returncode}, {code} is wanted:\n{done.stdout}\n{done.stderr}"
        return done

    return run


EACH = """
import contextlib, importlib, io, json, os, pathlib, subprocess, sys
from absl import flags
from absl.testing import flagsaver
from engine.study import child
from scripts import cli

results = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # where processes print that are not asked here
module, asked, start = importlib.import_module(sys.argv[1]), json.load(sys.stdin), subprocess.run

def run(words):
    before, out, err = sys.argv, io.StringIO(), io.StringIO()
    sys.argv = [module.__name__.split(".")[-1], *words]
    with flagsaver.flagsaver(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        flags.FLAGS.unparse_flags()
        code = cli._run(module.main, module.__doc__, module.__name__)
    sys.argv = before
    return code, out.getvalue(), err.getvalue()

def here(command, **options):
    if command[1:3] != ["-m", "engine.study.child"] or "--bare" in command:
        return start(command, **options)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = child.perform(command[3], json.loads(options["input"]), pathlib.Path(command[4]))
    return subprocess.CompletedProcess(command, code, "", err.getvalue())

if sys.argv[2] == "here":
    subprocess.run = here
for words in asked:
    print(json.dumps(run(words)), file=results, flush=True)
"""


@pytest.fixture(scope="session")
def run_each(programs: forked.Programs) -> Callable[..., list[tuple[int, str, str]]]:
    """Runs a program with each of these flags: (exit code, stdout, stderr) of each; checks that none has a traceback.

    All in one process, since each would take seconds to start; not in the tests' own, because programs share names
    of flags. What the program starts as a process of its own runs there too, unless ``apart``.
    """

    def run(
        program: str, asked: Sequence[Sequence[str]], *, apart: bool = False, seconds: int = 300
    ) -> list[tuple[int, str, str]]:
        words = ["-c", EACH, program, "apart" if apart else "here"]
        done = programs.run(words, given=json.dumps([list(words) for words in asked]), seconds=seconds)
        assert done.returncode == 0, done.stderr
        found = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
        assert len(found) == len(asked)
        assert not [err for _, out, err in found if "Traceback" in out + err]
        return found

    return run


@pytest.fixture
def curves() -> None:
    """Asked for by tests whose runs draw curves.png and frostline.png; others leave it out, which halves the time of a short run."""


@pytest.fixture
def call(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs finetune in this process: (exit code, stdout, stderr). Much faster than a new process."""
    from absl import flags
    from absl.testing import flagsaver
    from tensorflow.python.framework import config  # there is no public way to switch it off again

    from engine.runs import picture, records
    from scripts import cli, finetune, finetune_flags

    if "curves" not in request.fixturenames:
        monkeypatch.setattr(records, "draw_curves", lambda *_: None)
        monkeypatch.setattr(picture, "draw", lambda *_: None)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["finetune", *words])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with flagsaver.flagsaver():
            flags.FLAGS.unparse_flags()
            code = cli._run(finetune.main, finetune.__doc__ or "", finetune_flags.__name__)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        config.disable_op_determinism()  # finetune switches it on, and later tests count ops without it
        out = capsys.readouterr()
        assert "Traceback" not in out.out + out.err
        return code, out.out, out.err

    return run


@pytest.fixture
def deterministic_ops() -> Iterator[None]:
    """Op determinism on, for contracts that compare bits."""
    import tensorflow as tf
    from tensorflow.python.framework import config  # there is no public way to switch it off again

    tf.keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    yield
    config.disable_op_determinism()


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """An .npz of 60 real training and 20 test images in 3 classes, cut to 16x16 pixels."""
    from engine import data

    source = data.open_data("fashion_mnist_mini")
    assert source.test is not None
    arrays: dict[str, np.ndarray] = {}
    for prefix, part, each in (("train", source.train, 20), ("test", source.test, 7)):
        chosen = np.concatenate([np.flatnonzero(part.labels == label)[:each] for label in (0, 1, 5)])
        arrays[f"{prefix}_images"] = part.read(chosen)["image"][:, 6:22, 6:22]
        arrays[f"{prefix}_labels"] = np.repeat(np.arange(3), each)
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """DIR/train, DIR/val and DIR/test with folders of small PNG files: bag, boot and trouser, real images of clothes."""
    from PIL import Image

    from engine import data

    part = data.open_data("fashion_mnist_mini").train
    folder = tmp_path_factory.mktemp("used") / "photos"
    for name, label in (("bag", 8), ("boot", 9), ("trouser", 1)):
        images = iter(part.read(np.flatnonzero(part.labels == label)[:24])["image"][..., 0])
        for place, count in (("train", 12), ("val", 7), ("test", 5)):
            (folder / place / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(next(images)).save(folder / place / name / f"{name}{number + 1}.png")
    return folder


@pytest.fixture(scope="session")
def photo_run(photos: pathlib.Path) -> Any:
    """A run of some steps on the photos: cnn:mini at 16x16 pixels."""
    from tensorflow.python.framework import config  # there is no public way to switch it off again

    from engine import FinetuneConfig, finetune
    from engine.runs import picture, records

    fields = {
        "model": "cnn:mini",
        "weights": "none",
        "train": "@all",
        "steps": 12,
        "batch_size": 12,
        "image_size": "16",
    }
    given = fields | {
        "data": f"folder:{photos}",
        "learning_rate": 0.01,
        "ema": 0.8,
        "out": str(photos.parent / "run"),
        "seed": 1,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "draw_curves", lambda *_: None)
        patch.setattr(picture, "draw", lambda *_: None)
        result = finetune(FinetuneConfig(**given))  # type: ignore[arg-type]
    config.disable_op_determinism()
    return result
