"""Runs an old graph in a process of its own, where a kernel that aborts ends that process and not the program."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compat_v1.checkpoints.reader import open_source
from compat_v1.errors import GraphError
from compat_v1.graphs import extract, metagraph
from compat_v1.graphs.extract import Extracted
from compat_v1.graphs.input_text import parse_inputs
from compat_v1.graphs.original import Original
from engine import host
from engine.errors import InputError
from engine.files import Npz, write_npz
from engine.sizes import format_bytes
from engine.study import child

TIME_LIMIT = 600.0  # seconds
_GRACE = 5.0  # seconds for what can be stopped in order


@dataclass(frozen=True)
class Job:
    """Which part of which graph runs with which weights, by what the user wrote, so that any process can find it again.

    ``tags`` are those of the graph, ``inputs`` is parsed by ``parse_inputs``; None stands for the only inputs or outputs.
    The graph may run for ``time_limit`` seconds.
    """

    source: str
    graph: str
    tags: Sequence[str]
    inputs: str | None
    outputs: Sequence[str] | None
    time_limit: float = TIME_LIMIT

    def extract(self, graph: metagraph.MetaGraph) -> Extracted:
        """Extracts what the outputs need; raises as compat_v1.graphs.extract.extract."""
        inputs = parse_inputs(self.inputs) if self.inputs else None
        return extract.extract(graph.definition, path=self.graph, inputs=inputs, outputs=self.outputs)


class Apart:
    """The old network as a function of its feeds, as ``Original`` is, but each call runs in a process of its own.

    Raises GraphError if that process fails, also natively (an abort, a segmentation fault, no memory), takes longer than
    the job's time limit, or needs more memory than may be used (``engine.host.memory_limit``).
    """

    def __init__(self, job: Job, extracted: Extracted) -> None:
        self.job = job
        self.extracted = extracted

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Computes output tensor -> value from input tensor -> value."""
        with tempfile.TemporaryDirectory(prefix="frostline-original-") as folder:
            fed, computed = pathlib.Path(folder) / "fed.npz", pathlib.Path(folder) / "computed.npz"
            write_npz(fed, [(str(number), array) for number, array in enumerate(feeds.values())])
            files = {"fed": str(fed), "names": list(feeds), "computed": str(computed)}
            try:
                found = child.run_job(f"{__name__}:run", vars(self.job) | files, memory=host.memory_limit())
            except child.ChildError as error:
                if signal.SIGALRM.name in str(error):
                    raise GraphError(_too_long(self.job)) from None
                shapes = ", ".join(f"{name} {list(np.shape(array))}" for name, array in feeds.items())
                raise GraphError(
                    f"{self.job.graph}: TensorFlow failed while it ran the old graph ({error}). It was fed "
                    f"{shapes or 'nothing'}; check these shapes and state others with inputs=NAME[None,32,32,3], give "
                    "values with an .npz file, or take other outputs"
                ) from None
            if "error" in found:
                raise GraphError(found["error"])
            with Npz(computed) as arrays:
                return {name: arrays.read(str(number)) for number, name in enumerate(found["outputs"])}


def run(argument: Mapping[str, Any]) -> dict[str, Any]:
    """Runs the original in this process and writes its outputs into a file; returns their names, or the error."""
    try:
        return {"outputs": _run(argument)}
    except InputError as error:  # here, so that nothing that TensorFlow prints is taken for it
        return {"error": str(error)}
    except MemoryError:
        limit = format_bytes(host.memory_limit())
        return {"error": f"{argument['graph']}: the old graph needs more than the {limit} of memory that may be used"}


def _run(argument: Mapping[str, Any]) -> list[str]:
    job = Job(*(argument[name] for name in Job.__dataclass_fields__))
    with Npz(argument["fed"]) as fed:
        feeds = {name: fed.read(str(number)) for number, name in enumerate(argument["names"])}
    extracted = job.extract(metagraph.read_metagraph(job.graph, tags=job.tags))
    with _ended_after(job.time_limit + _GRACE):
        with open_source(job.source) as source:
            original = Original(extracted, source, time_limit=job.time_limit)
        found = original(feeds)
    for name, array in found.items():
        check_numbers(name, array, whose="the old graph")
    write_npz(argument["computed"], [(str(number), array) for number, array in enumerate(found.values())])
    return list(found)


@contextlib.contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    """Lets the system end the process: loops of TensorFlow 1, and kernels, cannot be stopped in another way."""
    before = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _too_long(job: Job) -> str:
    return f"{job.graph}: the old graph did not finish within {job.time_limit:g} seconds and was stopped"


def check_numbers(name: str, array: np.ndarray, *, whose: str) -> None:
    """Raises GraphError unless an output consists of numbers."""
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise GraphError(
            f"outputs={name}: the output of {whose} has dtype {array.dtype.name}; only numbers can be compared"
        )
