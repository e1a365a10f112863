"""A worker is lost when it does not answer for long enough, and never because it is merely slow."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import tensorflow as tf

from engine.distribution.distribution import Distribution, WorkerLostError
from engine.distribution.failures import explained
from engine.distribution.watch import Watch

TIMEOUT = 0.4  # seconds; a question every 0.05


class Others:
    """How the other workers of a run answer, and what is done to this process."""

    def __init__(self, workers: int = 3, *, timeout: float = TIMEOUT) -> None:
        self.faults: dict[int, str] = {}
        self.aborted: list[str] = []
        self.ended: list[str] = []
        self.watch = Watch(
            [f"h:{worker}" for worker in range(workers)],
            0,
            timeout=timeout,
            probe=lambda worker, _: self.faults.get(worker),
            abort=self.aborted.append,
            end=self.ended.append,
        )

    def wait(self, condition: Callable[[], object], seconds: float = 3.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.fixture
def others() -> Others:
    return Others()


def test_a_worker_that_is_gone_ends_a_process_that_does_not_end_by_itself(others: Others) -> None:
    others.watch.start()
    time.sleep(0.1)
    begin = time.monotonic()
    others.faults[2] = "gone"
    others.wait(lambda: others.ended)
    assert time.monotonic() - begin < 2 * TIMEOUT
    assert others.ended == others.aborted
    assert others.ended[0].startswith("worker 2 (h:2) has died or cannot be reached; the last checkpoint stands")


def test_a_worker_that_is_silent_is_lost_after_the_timeout_alone(others: Others) -> None:
    others.faults[1] = "silent"
    others.watch.start()
    time.sleep(0.7 * TIMEOUT)
    assert not others.aborted
    others.wait(lambda: others.ended)
    assert others.ended[0].startswith("worker 1 (h:1) has not answered for 0 seconds")


def test_a_worker_that_answers_again_is_not_lost(others: Others) -> None:
    others.watch.start()
    for _ in range(4):
        others.faults[1] = "silent"
        time.sleep(0.6 * TIMEOUT)
        others.faults.clear()
        time.sleep(0.3 * TIMEOUT)
    assert not others.aborted
    others.watch.stop()


def test_nothing_happens_after_the_watch_has_stopped(others: Others) -> None:
    others.watch.start()
    others.watch.stop()
    others.faults[1] = others.faults[2] = "gone"
    time.sleep(2 * TIMEOUT)
    assert not others.aborted
    assert not others.ended
    assert others.watch.is_stopped


def test_a_process_that_ends_its_work_by_itself_is_not_ended() -> None:
    others = Others(timeout=2.0)  # time to end
    others.watch.start()
    others.faults[1] = "gone"
    others.wait(lambda: others.aborted)
    with (
        pytest.raises(WorkerLostError, match=r"worker 1 \(h:1\) has died"),
        explained(Distribution(watch=others.watch)),
    ):
        raise tf.errors.UnavailableError(None, None, "Collective ops is aborted")
    assert not others.ended


def test_operations_that_are_cancelled_when_a_worker_is_lost_name_it(others: Others) -> None:
    others.faults[1] = "gone"
    with (
        pytest.raises(WorkerLostError, match=r"^worker 1 \(h:1\) has died"),
        explained(Distribution(watch=others.watch)),
    ):
        raise tf.errors.CancelledError(None, None, "RecvAsync is cancelled")


def test_of_workers_that_end_one_after_the_other_the_first_is_named(others: Others) -> None:
    others.faults[2] = "gone"
    others.watch._ask_all({"gone": 9, "silent": 9})
    time.sleep(0.1)
    others.faults[1] = "gone"
    with (
        pytest.raises(WorkerLostError, match=r"^worker 2 \(h:2\) has died"),
        explained(Distribution(watch=others.watch)),
    ):
        raise tf.errors.UnavailableError(None, None, "CollectiveReduceV2: connection reset")


def test_workers_that_are_lost_together_are_all_named(others: Others) -> None:
    others.faults[1] = others.faults[2] = "gone"
    error = others.watch.explain(ValueError("reset"))
    assert error is not None
    assert str(error).startswith("worker 1 (h:1) and worker 2 (h:2) have died or cannot be reached")


def test_a_failed_exchange_without_a_loss_is_told_as_it_is(others: Others) -> None:
    with (
        pytest.raises(WorkerLostError, match=r"though all of them answer .*connection reset"),
        explained(Distribution(watch=others.watch)),
    ):
        raise tf.errors.InternalError(None, None, "CollectiveReduceV2:\n connection reset\n\n")


def test_a_silent_worker_is_named_once_an_exchange_has_failed() -> None:
    others = Others(timeout=1.0)
    others.faults[2] = "silent"
    with pytest.raises(WorkerLostError, match=r"^worker 2 \(h:2\) has not answered for 1 seconds"):
        raise others.watch.explain(ValueError("reset")) or AssertionError


def test_errors_of_this_worker_itself_stay_what_they_are(others: Others) -> None:
    with pytest.raises(tf.errors.ResourceExhaustedError), explained(Distribution(watch=others.watch)):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    with pytest.raises(tf.errors.CancelledError), explained(Distribution(watch=others.watch)):
        raise tf.errors.CancelledError(None, None, "the file was closed")
    assert not others.watch.is_stopped
    with pytest.raises(KeyError), explained(Distribution(watch=others.watch)):
        raise KeyError("collective")
    with pytest.raises(tf.errors.UnavailableError), explained(Distribution()):
        raise tf.errors.UnavailableError(None, None, "CollectiveReduceV2")
