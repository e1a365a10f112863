"""The workers of a run, as the environment variable TF_CONFIG names them, and the port that is this one's own."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.distribution.distribution import DistributionError, name_worker
from engine.text import cut, join_words, nearest

_EXAMPLE = (
    'a valid one for two workers is TF_CONFIG=\'{"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
    '"task": {"type": "worker", "index": 0}}\', with index 1 on the second'
)
_UNUSED = {"ps": "parameter servers", "evaluator": "evaluators"}  # of TensorFlow's other strategies


class ClusterError(DistributionError):
    """TF_CONFIG does not name the workers of a run, or this worker's port is not free."""


@dataclass(frozen=True)
class Cluster:
    """The workers of a run.

    Attributes:
        addresses: the host:port of each worker; the first one is the chief.
        worker: the number of this one.
    """

    addresses: tuple[str, ...]
    worker: int

    @property
    def port(self) -> int:
        """The port that this worker listens on."""
        return _split(self.addresses[self.worker])[1]

    @property
    def hosts(self) -> set[str]:
        """The hosts of all workers."""
        return {_split(address)[0] for address in self.addresses}

    def connect(self, worker: int, *, seconds: float) -> str | None:
        """Why a worker's port cannot be connected to within some seconds; None if it can."""
        try:
            with socket.create_connection(_split(self.addresses[worker]), timeout=seconds):
                return None
        except OSError as error:
            return (error.strerror or str(error) or type(error).__name__).lower()


def read_cluster(environ: Mapping[str, str]) -> Cluster:
    """Reads the workers of a run, and which of them this process is, from TF_CONFIG.

    The jobs are "worker" and, if there is one, "chief"; a chief is worker 0, and the others follow it.

    Raises:
        ClusterError: TF_CONFIG is missing or not valid.

    Example:
        >>> from engine.distribution.cluster import read_cluster
        >>> workers = '{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 1}}'
        >>> read_cluster({"TF_CONFIG": workers})
        Cluster(addresses=('a:2222', 'b:2222'), worker=1)
    """
    config = _parse(environ.get("TF_CONFIG", ""))
    jobs = _jobs(config)
    addresses = (*jobs.get("chief", ()), *jobs.get("worker", ()))
    _check_addresses(addresses)
    kind, index = _task(config, jobs)
    return Cluster(addresses, index + (len(jobs.get("chief", ())) if kind == "worker" else 0))


def check_port(cluster: Cluster) -> None:
    """Raises ClusterError unless this worker's port is free."""
    with socket.socket() as found:
        found.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # connections of an earlier run that are just ending
        try:
            found.bind(("", cluster.port))
        except OSError as error:
            raise port_error(cluster, (error.strerror or str(error)).lower()) from None


def port_error(cluster: Cluster, fault: str) -> ClusterError:
    """The error of a port that this worker cannot listen on."""
    return ClusterError(
        f"port {cluster.port} of {name_worker(cluster.addresses, cluster.worker)} cannot be used ({fault}); end the process "
        "that listens on it, which may be a worker of an earlier run, or give this worker another port in the TF_CONFIG of "
        "all workers"
    )


def _error(rule: str) -> ClusterError:
    return ClusterError(f"TF_CONFIG: {rule}; {_EXAMPLE}")


def _parse(text: str) -> Mapping[str, Any]:
    if not text.strip():
        raise _error("it is not set, and distribute=multiworker reads the addresses of all workers from it")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _error(f"{cut(text)!r} is not valid JSON ({cut(str(error))})") from None
    if not isinstance(config, dict):
        raise _error(f"{cut(text)!r} is not a JSON object with the keys cluster and task")
    for key in ("cluster", "task"):
        if not isinstance(config.get(key), dict):
            fault = f"has the value {cut(json.dumps(config[key]))}" if key in config else "is missing"
            hint = "" if key in config else nearest(key, list(config))
            raise _error(f'the key "{key}" {fault}; expected an object{hint}')
    return config


def _jobs(config: Mapping[str, Any]) -> Mapping[str, list[str]]:
    """The addresses of each job that takes part."""
    jobs = config["cluster"]
    for job, addresses in jobs.items():
        if job in _UNUSED:
            raise _error(f'the cluster has the job "{job}", but a run has no {_UNUSED[job]}; expected chief and worker')
        if job not in ("chief", "worker"):
            raise _error(
                f"{cut(job)!r} is not a valid job; expected chief or worker{nearest(job, ('chief', 'worker'))}"
            )
        if not isinstance(addresses, list) or not all(isinstance(each, str) for each in addresses):
            raise _error(f'the job "{job}" is {cut(json.dumps(addresses))}; expected a list of addresses')
    if len(jobs.get("chief", ())) > 1:
        raise _error(f'the job "chief" has {len(jobs["chief"])} addresses; expected one')
    if not any(jobs.values()):
        raise _error('the cluster names no workers; expected their addresses in the list "worker"')
    return jobs


def _check_addresses(addresses: tuple[str, ...]) -> None:
    for place, address in enumerate(addresses):
        if not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):[0-9]{1,9}", address):
            scheme = "; leave out the part up to //" if "//" in address else ""
            raise _error(f"the address {cut(address)!r} is not a valid host:port{scheme}")
        try:
            _split(address)[0].encode("idna")
        except UnicodeError:
            raise _error(f"the address {cut(address)!r} has no valid name of a host") from None
        if not 1 <= (port := _split(address)[1]) <= 65535:
            raise _error(f"the address {cut(address)!r} has the port {port}; expected a number from 1 to 65535")
        if address.lower() in map(str.lower, addresses[:place]):
            raise _error(f"the address {address!r} is given twice; each worker needs one of its own")


def _task(config: Mapping[str, Any], jobs: Mapping[str, list[str]]) -> tuple[str, int]:
    """The type and the index of this worker."""
    task = config["task"]
    for key in ("type", "index"):
        if key not in task:
            raise _error(f'the task has no "{key}"{nearest(key, list(task))}')
    kind, index = task["type"], task["index"]
    known = [job for job in ("chief", "worker") if jobs.get(job)]
    if kind in ("ps", "evaluator"):
        raise _error(f'the task is of type "{kind}", but a run has no {_UNUSED[kind]}; expected {join_words(known)}')
    if kind not in known:
        near = nearest(kind, known) if isinstance(kind, str) else ""
        raise _error(
            f"the task's type {cut(json.dumps(kind))} is not a job of the cluster, which has {join_words(known)}{near}"
        )
    if isinstance(index, str) and re.fullmatch(r"[0-9]{1,9}", index):  # as several cluster managers write it
        index = int(index)
    if isinstance(index, bool) or not isinstance(index, int):
        raise _error(f"the task's index is {cut(json.dumps(index))}; expected a whole number")
    if not 0 <= index < len(jobs[kind]):
        count = len(jobs[kind])
        most = f"a number from 0 to {count - 1}" if count > 1 else "0"
        raise _error(
            f'the task\'s index is {index}, but the job "{kind}" has {count} address{"es"[: 2 * (count > 1)]}; expected {most}'
        )
    return kind, index


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
