"""Programs run in this process, which is much faster than a new one."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import pytest
from absl import flags
from absl.testing import flagsaver


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs finetune in this process: (exit code, stdout, stderr)."""
    from tensorflow.python.framework import config  # there is no public way to switch determinism off again

    from scripts import finetune, finetune_flags, program

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["finetune", *words])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with flagsaver.flagsaver():
            flags.FLAGS.unparse_flags()
            code = program._run(finetune.main, finetune.__doc__ or "", finetune_flags.__name__)
        config.disable_op_determinism()  # other tests look at the ops that are used without it
        for number, handler in handlers.items():
            signal.signal(number, handler)
        out = capsys.readouterr()
        assert "Traceback" not in out.out + out.err
        return code, out.out, out.err

    return run
