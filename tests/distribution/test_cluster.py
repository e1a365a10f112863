"""TF_CONFIG is read as everywhere in TensorFlow, and each fault in it is told in words."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
import workers

from engine.distribution.cluster import Cluster, ClusterError, check_port, read_cluster
from engine.errors import InputError

TWO = ["host1:2222", "host2:2222"]


def config(cluster: Any = None, *, kind: Any = "worker", index: Any = 0, **others: Any) -> str:
    return json.dumps(
        {"cluster": {"worker": TWO} if cluster is None else cluster, "task": {"type": kind, "index": index}, **others}
    )


@pytest.mark.parametrize(
    ("text", "addresses", "worker"),
    [
        (config(), TWO, 0),
        (config(index=1), TWO, 1),
        (config(index="1"), TWO, 1),
        (config({"chief": ["c:1"], "worker": TWO}, kind="chief"), ["c:1", *TWO], 0),
        (config({"worker": TWO, "chief": ["c:1"]}, index=1), ["c:1", *TWO], 2),
        (config({"chief": ["c:1"]}, kind="chief"), ["c:1"], 0),
        (config({"worker": ["[::1]:2222", "10.0.0.1:65535"]}, environment="cloud", rpc_layer="grpc"), ["[::1]:2222", "10.0.0.1:65535"], 0),
    ],
)  # fmt: skip
def test_workers_are_read_with_the_chief_first(text: str, addresses: list[str], worker: int) -> None:
    assert read_cluster({"TF_CONFIG": text}) == Cluster(tuple(addresses), worker)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is not set"),
        ("  ", "it is not set"),
        ("{'cluster': 1}", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[1, 2]", "is not a JSON object"),
        ("{}", 'the key "cluster" is missing'),
        ('{"clutser": {}, "task": {}}', 'the key "cluster" is missing; expected an object; nearest: clutser'),
        ('{"cluster": ["a:1"], "task": {}}', 'the key "cluster" has the value ["a:1"]; expected an object'),
        (json.dumps({"cluster": {"worker": TWO}}), 'the key "task" is missing'),
        (config({}), "the cluster names no workers"),
        (config({"worker": []}), "the cluster names no workers"),
        (config({"worker": TWO, "ps": ["p:1"]}), 'the job "ps", but a run has no parameter servers'),
        (config({"worker": TWO, "evaluator": ["p:1"]}), 'the job "evaluator", but a run has no evaluators'),
        (config({"wroker": TWO}), "'wroker' is not a valid job; expected chief or worker; nearest: worker"),
        (config({"worker": "a:1"}), 'the job "worker" is "a:1"; expected a list of addresses'),
        (config({"worker": [1, 2]}), "expected a list of addresses"),
        (config({"worker": TWO, "chief": ["a:1", "b:1"]}), 'the job "chief" has 2 addresses; expected one'),
        (config({"worker": ["host1", "host2:1"]}), "the address 'host1' is not a valid host:port"),
        (config({"worker": ["http://host1:1"]}), "leave out the part up to //"),
        (config({"worker": ["host1:x"]}), "is not a valid host:port"),
        (config({"worker": ["host1:-1"]}), "is not a valid host:port"),
        (config({"worker": [":2222"]}), "is not a valid host:port"),
        (config({"worker": ["a b:2222"]}), "is not a valid host:port"),
        (config({"worker": ["::1:2222"]}), "is not a valid host:port"),
        (config({"worker": ["a..b:1"]}), "has no valid name of a host"),
        (config({"worker": ["x" * 80 + ":1"]}), "has no valid name of a host"),
        (config({"worker": ["host1:0"]}), "the port 0; expected a number from 1 to 65535"),
        (config({"worker": ["host1:65536"]}), "the port 65536; expected"),
        (config({"worker": ["a:1", "b:1", "A:1"]}), "the address 'A:1' is given twice"),
        (config({"worker": ["a:1"], "chief": ["a:1"]}), "the address 'a:1' is given twice"),
        (json.dumps({"cluster": {"worker": TWO}, "task": {"typ": "worker", "index": 0}}), 'the task has no "type"; nearest: typ'),
        (json.dumps({"cluster": {"worker": TWO}, "task": {"type": "worker"}}), 'the task has no "index"'),
        (config(kind="ps"), 'the task is of type "ps", but a run has no parameter servers; expected worker'),
        (config(kind="evaluator"), "a run has no evaluators"),
        (config(kind="chief"), "is not a job of the cluster, which has worker"),
        (config(kind="workers"), "nearest: worker"),
        (config(kind=["worker"]), "is not a job of the cluster"),
        (config(kind=None), "the task's type null is not a job"),
        (config(index=2), 'the task\'s index is 2, but the job "worker" has 2 addresses; expected a number from 0 to 1'),
        (config({"worker": ["a:1"]}, index=1), 'the job "worker" has 1 address; expected 0'),
        (config(index=-1), "the task's index is -1"),
        (config(index=1.0), "the task's index is 1.0; expected a whole number"),
        (config(index=True), "the task's index is true; expected a whole number"),
        (config(index="first"), 'the task\'s index is "first"; expected a whole number'),
        (config(index=None), "the task's index is null; expected a whole number"),
    ],
)  # fmt: skip
def test_a_wrong_tf_config_is_refused_in_words_with_a_valid_one(text: str, words: str) -> None:
    with pytest.raises(ClusterError) as found:
        read_cluster({"TF_CONFIG": text})
    assert isinstance(found.value, InputError)
    assert words in str(found.value)
    assert 'a valid one for two workers is TF_CONFIG=\'{"cluster"' in str(found.value)
    assert len(str(found.value)) < 600


def test_without_tf_config_nothing_is_guessed() -> None:
    with pytest.raises(ClusterError, match="it is not set"):
        read_cluster({})


def test_a_port_in_use_is_refused_and_a_free_one_stays_free() -> None:
    (port,) = workers.free_ports(1)
    cluster = Cluster((f"127.0.0.1:{port}",), 0)
    check_port(cluster)
    check_port(cluster)
    assert cluster.connect(0, seconds=1.0) == "connection refused"
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(ClusterError, match=rf"port {port} of worker 0 .* cannot be used .*end the process"):
            check_port(cluster)
        assert cluster.connect(0, seconds=1.0) is None
