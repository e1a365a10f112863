"""The process of one runner: it builds the runner, and then does what it is told, one line at a time.

The first line of standard input names the runner and its job; each further line asks for a step, for facts or for the
cost of a step, and gets one line of JSON in return. The process ends with the one that asks. This module imports no
framework, so that a process holds only the libraries of its own runner.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from typing import Any

from engine.host import peak_rss_bytes
from engine.study import child

from .harness import Runner


def time_step(runner: Runner) -> dict[str, Any]:
    """Does one step: its loss, its seconds and CPU seconds (user and system), and the peak memory so far in bytes."""
    cpu, start = cpu_seconds(), time.perf_counter()
    loss = runner.train_step()
    seconds = time.perf_counter() - start
    return {"loss": loss, "seconds": seconds, "cpu_seconds": cpu_seconds() - cpu, "peak_rss_bytes": peak_rss_bytes()}


def cpu_seconds() -> float:
    """The seconds that all threads of this process have computed so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def answer(runner: Any, word: str) -> dict[str, Any]:
    """Does what a line asks for: "step", "facts" or "cost"."""
    return {"step": lambda: time_step(runner), "facts": runner.facts, "cost": lambda: runner.cost()}[word]()


def _find(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def main() -> int:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for a reply
    child.end_with_asker()
    asked = json.loads(sys.stdin.readline())
    try:
        if asked["tensorflow"]:
            from engine.host import import_tensorflow

            import_tensorflow()
        runner = _find(asked["target"])(_find(asked["kind"])(**asked["job"]))
        print(json.dumps({"ready": True}), file=replies, flush=True)
        for line in sys.stdin:
            print(json.dumps(answer(runner, line.strip())), file=replies, flush=True)
    except ModuleNotFoundError as error:
        print(json.dumps({"missing": error.name}), file=replies, flush=True)
    except Exception as error:  # whatever it is, the one that asks gets a sentence
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=replies, flush=True)
    else:
        return child.DONE
    return child.FAILED


if __name__ == "__main__":
    sys.exit(main())
