"""Starts what a run is distributed by: nothing, the devices of this machine, or the workers that TF_CONFIG names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping

from engine import devices, host, tensorflow_private
from engine.distribution.cluster import ClusterError, read_cluster
from engine.distribution.distribution import ALONE, Distribution, DistributionError
from engine.distribution.join import join_workers
from engine.distribution.shares import Share
from engine.errors import check_range
from engine.text import nearest

KINDS = ("none", "mirrored", "multiworker")
TIMEOUT, LEAST_TIMEOUT = 60.0, 5  # seconds
MOST_LOGICAL_DEVICES = 64


def start_distribution(
    kind: str,
    *,
    device: str = "auto",
    logical_devices: int | None = None,
    timeout: float = TIMEOUT,
    say: Callable[[str], object] = print,
    stop: Callable[[], bool] = lambda: False,
    environ: Mapping[str, str] = os.environ,
) -> Distribution:
    """Starts TensorFlow for one device ("none"), for those of this machine ("mirrored"), or as a worker ("multiworker").

    It comes before TensorFlow's first operation. "mirrored" takes all GPUs, or ``logical_devices`` devices that share
    the cores of the CPU, or the CPU. "multiworker" takes one device of each worker that TF_CONFIG names; it waits for all
    of them, ``timeout`` seconds at most or until ``stop`` returns True, and tells ``say`` for whom. Later, a worker that does not answer for ``timeout``
    seconds is lost. ``device`` is as in ``engine.devices.select_device``; "none" does not select one.

    Raises:
        DistributionError: the arguments or TF_CONFIG are not valid, or TensorFlow has started already.
        WorkerLostError: a worker does not come.
        StoppedError: ``stop`` returned True before all had come.

    Example:
        >>> from engine.distribution.start import start_distribution
        >>> start_distribution("none").workers
        1
    """
    if kind not in KINDS:
        raise DistributionError(f"distribute={kind!r}: expected none, mirrored or multiworker{nearest(kind, KINDS)}")
    check_range("worker_timeout", timeout, LEAST_TIMEOUT)
    check_range("logical_devices", logical_devices, 1, MOST_LOGICAL_DEVICES)
    if logical_devices is not None and kind != "mirrored":
        raise DistributionError(
            f"logical_devices={logical_devices}: they are the replicas of distribute=mirrored, but here distribute={kind}"
        )
    if kind == "multiworker":
        return join_workers(read_cluster(environ), device=device, timeout=timeout, say=say, stop=stop)
    with contextlib.suppress(ClusterError):  # nothing depends on it
        if (count := len(read_cluster(environ).addresses)) > 1:
            say(f"note: TF_CONFIG names {count} workers, but distribute={kind}: this process trains without the others")
    return _start_mirrored(device, logical_devices) if kind == "mirrored" else ALONE


def _start_mirrored(device: str, logical_devices: int | None) -> Distribution:
    tf = host.import_tensorflow(start=False, keras=False)
    started, gpus = tensorflow_private.has_started(), tf.config.list_physical_devices("GPU")
    chosen = devices.select_device(device, several=True)
    seen = len(tf.config.get_visible_devices("GPU"))
    if started and seen != (len(gpus) if device == "auto" else int(chosen.kind == "gpu")):
        raise DistributionError(
            f"distribute=mirrored: TensorFlow has already started with {seen} of {len(gpus)} GPUs, and device={device} is "
            "for another number; start the distribution before TensorFlow's first operation"
        )
    if logical_devices is not None:
        _set_logical_devices(logical_devices, chosen)
    kind = "GPU" if chosen.kind == "gpu" else "CPU"
    names = [each.name for each in tf.config.list_logical_devices(kind)]
    with tensorflow_private.quiet_logger(), _hidden("TF_CONFIG"):  # it would only be parsed, and told to be ignored
        strategy = tf.distribute.MirroredStrategy(names if kind == "GPU" or logical_devices else names[:1])
    count = strategy.num_replicas_in_sync
    return Distribution(kind="mirrored", strategy=strategy, share=Share(0, count, count))


@contextlib.contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Within this scope an environment variable is not set."""
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value


def _set_logical_devices(count: int, chosen: devices.Device) -> None:
    """Makes the CPU so many devices, all of which run on the same threads."""
    import tensorflow as tf

    if chosen.kind == "gpu":
        raise DistributionError(
            f"logical_devices={count}: they are parts of the CPU, but this run computes on {chosen.name}; leave them out, "
            "or set device=cpu"
        )
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:  # it has started
        if (found := len(tf.config.list_logical_devices("CPU"))) != count:
            raise DistributionError(
                f"logical_devices={count}: TensorFlow has already started with {found}; they are chosen before its first "
                "operation, in a process of its own"
            ) from None
