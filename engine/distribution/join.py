"""Joins the workers of a run: starts TensorFlow's server, waits for the others, and parts from them at the end."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from engine import devices, host, tensorflow_private
from engine.distribution.cluster import Cluster, check_port, port_error
from engine.distribution.distribution import (
    Distribution,
    DistributionError,
    StoppedError,
    WorkerLostError,
    name_worker,
)
from engine.distribution.exchange import Exchange
from engine.distribution.failures import explaining
from engine.distribution.shares import Share
from engine.distribution.watch import Watch, probe_worker
from engine.text import join_words

_SAY_EVERY = 5.0  # seconds
_DIRECT = "no_grpc_proxy"  # the variable that names hosts for which gRPC asks no proxy
_FAREWELL = 5.0  # seconds that the last message to a worker may take

_joined: dict[Cluster, tuple[Any, Exchange]] = {}  # a process joins one cluster in its life


def join_workers(
    cluster: Cluster,
    *,
    device: str,
    timeout: float,
    say: Callable[[str], object],
    stop: Callable[[], bool],
) -> Distribution:
    """Makes this process a worker of a cluster, once all others have come.

    Raises:
        DistributionError: the port is in use, or TensorFlow has started already.
        WorkerLostError: a worker does not come within ``timeout`` seconds.
        StoppedError: ``stop`` returned True meanwhile.
    """
    if cluster not in _joined:
        check_port(cluster)
    if "tensorflow" not in sys.modules:  # at its usual level it writes pages on what the end of another worker breaks
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    host.import_tensorflow(start=False, keras=False)
    strategy, exchange = _start_server(cluster, device)
    count = len(cluster.addresses)
    watch = Watch(cluster.addresses, cluster.worker, timeout=timeout)
    _wait_for_all(cluster, timeout=timeout, say=say, stop=stop)
    _meet(watch, exchange, timeout=timeout)

    def explain(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with explaining(watch):
                return function(*arguments)

        return call

    return Distribution(
        kind="multiworker",
        strategy=strategy,
        workers=count,
        worker=cluster.worker,
        addresses=cluster.addresses,
        share=Share(cluster.worker, cluster.worker + 1, count),
        exchange=explain(exchange.exchange),
        sum_arrays=explain(exchange.sum_arrays),
        part=lambda: _part(watch, exchange),
        watch=watch,
    )


def _start_server(cluster: Cluster, device: str) -> tuple[Any, Exchange]:
    """TensorFlow's server for other workers, and what it takes to speak with them; none of them is needed yet."""
    import tensorflow as tf

    if cluster in _joined:
        return _joined[cluster]
    if tensorflow_private.has_started():
        raise DistributionError(
            "distribute=multiworker: TensorFlow has already started in this process, which cannot join workers any more; "
            "start the distribution before TensorFlow's first operation, in a process of its own"
        )
    # a proxy that the environment names, for downloads, would also be asked to connect the workers
    direct = filter(None, (os.environ.get(_DIRECT), *sorted(cluster.hosts)))
    os.environ[_DIRECT] = ",".join(direct)
    chosen = devices.select_device(device)
    try:
        with tensorflow_private.quiet_logger():
            strategy = tensorflow_private.multi_worker_strategy(
                cluster.addresses, cluster.worker, ring=chosen.kind == "cpu"
            )
    except tf.errors.UnknownError as error:
        if "gRPC server" not in str(error):
            raise
        raise port_error(cluster, "another process has just taken it") from None
    _joined[cluster] = strategy, Exchange(strategy, workers=len(cluster.addresses), worker=cluster.worker)
    return _joined[cluster]


def _wait_for_all(cluster: Cluster, *, timeout: float, say: Callable[[str], object], stop: Callable[[], bool]) -> None:
    """Returns once the servers of all workers answer; says now and then which do not."""
    begin = time.monotonic()
    said, missing = begin, {worker: "" for worker in range(len(cluster.addresses)) if worker != cluster.worker}
    while missing:
        if stop():
            names = join_words(name_worker(cluster.addresses, each) for each in missing)
            raise StoppedError(f"stopped while waiting for {names}")
        for worker in list(missing):
            # TensorFlow would wait longer and longer between its own attempts to connect
            fault = cluster.connect(worker, seconds=1.0)
            if fault is None and probe_worker(worker, 1.0) is not None:
                fault = "it is connected, but does not answer as a worker of TensorFlow does"
            if fault is None:
                del missing[worker]
            else:
                missing[worker] = fault
            if missing and time.monotonic() - begin > timeout:
                names = join_words(name_worker(cluster.addresses, each) for each in missing)
                faults = join_words(dict.fromkeys(fault or "no answer" for fault in missing.values()))
                raise WorkerLostError(
                    f"{names} did not come within {timeout:g} seconds (worker_timeout): {faults}. Start all workers within "
                    "this time, with the same addresses in their TF_CONFIG, and let them connect to one another's ports"
                )
        if missing and time.monotonic() - said > _SAY_EVERY:
            said = time.monotonic()
            names = join_words(name_worker(cluster.addresses, each) for each in missing)
            say(f"waiting for {names}, {timeout - (said - begin):.0f} seconds more at most")
        time.sleep(0.1 if missing else 0)


def _meet(watch: Watch, exchange: Exchange, *, timeout: float) -> None:
    """The first exchange, from which on the loss of a worker is noticed."""
    watch.start()
    atexit.register(watch.stop)  # its questions must not meet the end of the interpreter
    with explaining(watch), _deadline(timeout) as passed:
        try:
            exchange.exchange("begin")
        except Exception:
            if not passed.is_set():
                raise
            watch.stop()
            raise WorkerLostError(
                f"all workers answer, but they have not come together within {timeout:g} seconds (worker_timeout); "
                "compare their TF_CONFIG: it has the same addresses in the same order, and each index once"
            ) from None


def _part(watch: Watch, exchange: Exchange) -> None:
    """Waits for all workers, after which none is lost any more."""
    if watch.is_stopped:
        return
    with explaining(watch):
        exchange.exchange("end")
    watch.stop()
    # Whoever is the first to receive the last message may end before it has sent it on. So there is another one, after
    # all have received the first, and it does not matter whether it arrives.
    with contextlib.suppress(Exception), _deadline(_FAREWELL):
        exchange.exchange("farewell")


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[threading.Event]:
    """Within this scope, collective operations fail after some seconds; yields what is set then."""
    passed = threading.Event()

    def stop() -> None:
        passed.set()
        tensorflow_private.abort_collectives("it has taken too long")

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield passed
    finally:
        timer.cancel()
