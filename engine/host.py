"""Facts about the machine and the process: memory, library versions, and quantiles of timings."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.metadata
import os
import pathlib
import platform
import resource
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from engine import devices
from engine.errors import InputError


def peak_rss_bytes() -> int:
    """Returns the largest resident set size of this process so far, in bytes."""
    with contextlib.suppress(OSError, StopIteration):  # Linux: getrusage would include the parent's memory before exec
        status = pathlib.Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def resident_bytes() -> int:
    """Returns the current resident set size in bytes, after unused memory was given back to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):  # not Linux: the peak is all there is
        return peak_rss_bytes()
    return pages * os.sysconf("SC_PAGE_SIZE")


LIMIT = "FROSTLINE_MEMORY_LIMIT"  # an environment variable, so that child processes obey it too


def memory_limit() -> int:
    """Returns how many more bytes this process may use for what a file declares.

    That is the environment variable FROSTLINE_MEMORY_LIMIT (which ``--memory_limit`` sets), else what is free: of the
    machine, of its container and of the process's own limit.
    """
    if (given := os.environ.get(LIMIT, "")).isdecimal():
        return int(given)
    free = [_meminfo("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):  # "max" is not a number
        group = pathlib.Path("/sys/fs/cgroup")
        most, used = (int((group / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
        facts = (line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        cached = sum(int(size) for key, size in facts if key in ("active_file", "inactive_file"))
        free.append(most - used + cached)
    own = resource.getrlimit(resource.RLIMIT_AS)[0]
    if own != resource.RLIM_INFINITY:
        with contextlib.suppress(OSError, ValueError, IndexError):
            pages = int(pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            free.append(own - pages * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(free))


def _meminfo(key: str) -> int:
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = pathlib.Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # not Linux


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that decide a run's results to the bit, and whether TensorFlow uses oneDNN."""
    import tensorflow as tf  # its distribution has several names: tensorflow, tensorflow-cpu, tf-nightly

    from engine import tensorflow_private

    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": importlib.metadata.version("keras"),
        "numpy": np.__version__,
        "onednn": "on" if tensorflow_private.uses_onednn() else "off",
    }


def quantiles(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Returns the median and the 10th and 90th percentiles (linearly interpolated) of one or more values.

    Example:
        >>> quantiles([1.0, 2.0, 3.0])
        {'median': 2.0, 'p10': 1.2, 'p90': 2.8}
    """
    return {key: float(np.percentile(values, q)) for key, q in (("median", 50), ("p10", 10), ("p90", 90))}


def import_tensorflow(*, start: bool = True, keras: bool = True, device: str = "auto") -> Any:
    """Imports TensorFlow without its start-up messages, which no setting silences.

    What was imported is kept from the garbage collector, which would look through it again and again while functions
    are traced. Matplotlib, which Keras imports for two functions that plot, is left out: it takes longer than Keras.

    ``start`` also starts the runtime, whose threads do not survive a fork, on a device (``engine.devices.select_device``,
    whose error is raised). ``keras`` also imports Keras, as TensorFlow does; without it, Keras is imported when it is
    first used.

    TensorFlow then computes with oneDNN, unless the environment says TF_ENABLE_ONEDNN_OPTS=0.
    """
    refused: InputError | None = None
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # TensorFlow turns oneDNN on by itself only where a processor has AVX-512 VNNI; it pays with AVX2 alone (docs/benchmarks.md)
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    first = "tensorflow" not in sys.modules
    hidden = [name for name in ("matplotlib", *(() if keras else ("keras.src",))) if name not in sys.modules]
    with stderr_on_failure(), _unimportable(hidden), _without_collections():
        import tensorflow as tf

        if start:
            try:
                devices.select_device(device)
                tf.constant(0)
            except InputError as error:  # raised below: what TensorFlow wrote meanwhile does not matter
                refused = error
    if first:
        gc.freeze()
    if refused is not None:
        raise refused
    return tf


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Within this scope no garbage is collected: an import makes a million objects, of which hardly any is garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def _unimportable(names: list[str]) -> Iterator[None]:
    """Within this scope, importing one of these modules raises ImportError."""
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


@contextlib.contextmanager
def stderr_on_failure() -> Iterator[None]:
    """Within this scope, what any code writes to stderr is shown only if the scope raises."""
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        except BaseException:
            written.seek(0)
            os.write(before, written.read())
            raise
        finally:
            os.dup2(before, 2)
            os.close(before)
