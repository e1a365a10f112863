"""The machine that runs this: memory of the process, versions of what decides a run's bits, spreads of what is timed."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import pathlib
import resource
import sys
from collections.abc import Sequence

import numpy as np


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far."""
    with contextlib.suppress(OSError, StopIteration):  # Linux: getrusage would count the parent before exec too
        status = pathlib.Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def resident_bytes() -> int:
    """Memory that this process holds now, what Python no longer needs given back."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):  # not Linux: the most it held so far
        return peak_rss_bytes()
    return pages * os.sysconf("SC_PAGE_SIZE")


def versions() -> dict[str, str]:
    """Versions of what decides a run's bits."""
    import platform

    import keras
    import numpy
    import tensorflow as tf

    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": numpy.__version__,
    }


def quantiles(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Median, 10th and 90th percentile (interpolated linearly) of at least one value.

    Example:
        >>> quantiles([1.0, 2.0, 3.0])
        {'median': 2.0, 'p10': 1.2, 'p90': 2.8}
    """
    return {key: float(np.percentile(values, q)) for key, q in (("median", 50), ("p10", 10), ("p90", 90))}
