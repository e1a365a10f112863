"""Runners for the tests of scripts.baselines.turns: what each does wrong is the name of its model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any


class Runner:
    def __init__(self, job: Any) -> None:
        self.job, self.steps = job, 0
        self.does = job.model
        if self.does == "needs a library":
            import no_such_library  # noqa: F401
        if self.does == "starts another process":
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", job.weights])

    def train_step(self) -> float:
        self.steps += 1
        print("this is not a reply")
        if self.does == "raises" and self.steps == 2:
            raise ValueError("no step for you")
        if self.does == "dies" and self.steps == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.does == "hangs" and self.steps == 2:
            time.sleep(600)
        if self.does == "exits" and self.steps == 2:
            print("the last words", file=sys.stderr, flush=True)
            os._exit(0)
        if self.does == "works":
            total = sum(range(300_000))
            assert total
        return 3.0 if self.does == "computes something else" else 2.0

    def facts(self) -> dict[str, Any]:
        return {"parameters": 10, "trained_parameters": 10, "waits": os.environ.get("OMP_WAIT_POLICY")}

    def cost(self) -> dict[str, float]:
        return {"gflop": 1.0}
