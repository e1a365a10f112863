"""What workers do in tests: ``python tests/worker_programs.py NAME ARGUMENTS``, with a worker's environment."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np
import pytest

from engine.distribution.distribution import Distribution, WorkerLostError
from engine.distribution.failures import explained
from engine.distribution.start import start_distribution
from engine.errors import InputError


def exchange(run: Distribution) -> None:
    """Values of many sizes reach all workers, arrays are summed, and facts are compared."""
    for value in ("", {"a": [1, None, 2.5]}, "ä" * 300, list(range(run.worker * 10_000)), float("inf"), "x" * 504):
        assert run.exchange([run.worker, value])[run.worker] == [run.worker, value]
        assert [each[0] for each in run.exchange([run.worker, value])] == list(range(run.workers))
    whole = np.random.default_rng(0).normal(size=[3, run.workers, 50_000])
    own = np.zeros_like(whole)
    own[:, run.worker] = whole[:, run.worker]
    sums = run.sum_arrays([own, np.float64(run.worker), np.zeros([0, 2])])
    assert np.array_equal(sums[0], whole)
    assert sums[1] == sum(range(run.workers))
    assert sums[2].shape == (0, 2)
    assert run.sum_arrays([]) == []
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        run.exchange(run.worker)
        times.append(time.perf_counter() - begin)
    print("slowest exchange", max(times), "median", sorted(times)[10])
    run.agree({"flags": {"seed": 1}, "versions": ["2.21"]})
    run.close()
    run.close()


def disagree(run: Distribution) -> None:
    run.agree({"seed": 3})
    run.agree({"flags": {"--batch_size": 32 * (run.worker + 1), "--seed": 1}, "weights": f"{run.worker}" * 64})


def shapes(run: Distribution) -> None:
    run.sum_arrays([np.zeros(run.worker + 1)])


def collectives(run: Distribution) -> None:
    """Exchanges without end."""
    print("ready", flush=True)
    with explained(run):
        while True:
            run.exchange(run.worker)
            time.sleep(0.01)


def alone(run: Distribution, seconds: str = "60") -> None:
    """Works without the others for some seconds, and then meets them."""
    run.exchange("ready")
    print("ready", flush=True)
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        sum(range(10_000))
    run.close()
    print("closed")


def fails(run: Distribution) -> None:
    """The last worker fails by itself."""
    run.exchange("ready")
    if run.worker == run.workers - 1:
        raise InputError("a fault of its own")
    run.exchange("next")


def turns(run: Distribution) -> None:
    """Exchanges and work without the others, in turns, without end."""
    print("ready", flush=True)
    while True:
        for _ in range(10):
            run.exchange("x" * 1000)
        alone = time.monotonic() + 0.2 + 0.4 * (run.worker % 2)
        while time.monotonic() < alone:
            sum(range(10_000))


def late(run: Distribution) -> None:
    run.close()


def mirrored() -> None:
    """Logical devices: each has its copy of a variable, and they are chosen once."""
    import tensorflow as tf

    run = start_distribution("mirrored", logical_devices=3)
    assert (run.share.replicas, run.share.of, run.workers, run.is_chief) == (3, 3, 1, True)
    assert run.exchange({"a": 1}) == [{"a": 1}]
    run.agree({"a": 1})
    run.close()
    assert run.strategy is not None
    with run.strategy.scope():
        variable = tf.Variable([1.0, 2.0])
    assert len(variable.values) == 3

    @tf.function(autograph=False)
    def add() -> Any:
        context = tf.distribute.get_replica_context
        return run.strategy.run(
            lambda: context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(variable.read_value()))
        )

    assert [each.numpy().tolist() for each in add().values] == [[3, 6]] * 3
    assert start_distribution("mirrored", logical_devices=3).share == run.share
    with pytest.raises(InputError, match="already started with 3"):
        start_distribution("mirrored", logical_devices=2)
    with pytest.raises(InputError, match="already started in this process"):
        start_distribution("multiworker")
    assert start_distribution("mirrored").share.of == 1


def main() -> int:
    name, *arguments = sys.argv[1:]
    if name == "mirrored":
        mirrored()
        print("done")
        return 0
    if name == "late" and '"index": 1' in os.environ["TF_CONFIG"]:
        time.sleep(6)
    try:
        begin = time.monotonic()
        run = start_distribution("multiworker", timeout=float(os.environ.get("TIMEOUT", "20")))
        print(f"started after {time.monotonic() - begin:.2f} seconds", flush=True)
        assert run.is_chief == (run.worker == 0)
        globals()[name](run, *arguments)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except WorkerLostError as error:
        print(error, file=sys.stderr)
        return 1
    print("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
