"""Real workers: processes of one machine that start, speak with each other, and end when one of them is lost."""

from __future__ import annotations

import random
import signal
import socket
import time

import pytest
from workers import Kill, Outcome, free_ports, run_workers

PROGRAMS = "tests/worker_programs.py"
QUICK = {"TIMEOUT": "5"}
LOST = "has died or cannot be reached; the last checkpoint stands, start all workers again with --resume\n"


def check_lost(found: list[Outcome], victim: int, *words: str, killed: bool = True) -> None:
    """All workers but one have ended with code 1 and one sentence, which names it."""
    for worker, each in enumerate(found):
        if worker != victim:
            assert each.code == 1, each
            assert each.stderr.count("\n") == 1, each
            assert each.stderr.startswith(f"worker {victim} (127.0.0.1:"), each
            assert any(text in each.stderr for text in words or (LOST,)), each
    assert not killed or found[victim].code == -signal.SIGKILL


def test_workers_exchange_values_and_sums_and_end_without_a_word() -> None:
    proxy = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}  # is not asked
    for each in run_workers([PROGRAMS, "exchange"], 3, environ=proxy):
        assert (each.code, each.stderr) == (0, "")
        assert each.stdout.endswith("done\n")
        assert float(each.stdout.split("slowest exchange ")[1].split()[0]) < 5


def test_workers_that_differ_all_say_in_what_and_end_with_code_2() -> None:
    first, second = run_workers([PROGRAMS, "disagree"], 2)
    assert first.code == second.code == 2
    assert first.stderr == second.stderr
    assert "flags: --batch_size is 32 on worker 0 (127.0.0.1:" in first.stderr
    assert "seed" not in first.stderr
    assert "weights is 0000" in first.stderr


def test_a_worker_that_is_killed_ends_the_others_that_wait_for_it_and_those_that_compute() -> None:
    check_lost(run_workers([PROGRAMS, "collectives"], 2, environ=QUICK, kill=(1, "ready")), 1)
    moments: list[float] = []
    found = run_workers([PROGRAMS, "alone"], 2, environ=QUICK, kill=(0, "ready"), killed=moments)
    assert time.monotonic() - moments[0] < 5 + 3  # the machine may be busy
    check_lost(found, 0)


def test_the_devices_of_one_machine_have_copies_of_a_variable() -> None:
    (found,) = run_workers([PROGRAMS, "mirrored"], 2, start=[0])
    assert (found.code, found.stderr) == (0, "")
    assert "TF_CONFIG names 2 workers, but distribute=mirrored: this process trains without the others" in found.stdout


@pytest.mark.slow
@pytest.mark.parametrize("program", ["collectives", "alone"])
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_any_of_three_workers_that_is_killed_ends_the_others(program: str, victim: int) -> None:
    ports = free_ports(3)
    check_lost(run_workers([PROGRAMS, program], 3, ports=ports, environ=QUICK, kill=(victim, "ready")), victim)
    again = run_workers([PROGRAMS, "alone", "0"], 3, ports=ports)
    assert [(each.code, each.stderr) for each in again] == [(0, "")] * 3


@pytest.mark.slow
def test_a_worker_that_is_killed_at_any_moment_ends_the_others() -> None:
    moments = random.Random(0)
    for _ in range(20):
        victim = moments.randrange(3)
        found = run_workers([PROGRAMS, "turns"], 3, environ=QUICK, kill=(victim, moments.uniform(0, 5)))
        check_lost(found, victim, LOST, "did not come within 5 seconds (worker_timeout)")


@pytest.mark.slow
def test_a_worker_that_fails_by_itself_says_why_and_the_others_that_it_is_gone() -> None:
    found = run_workers([PROGRAMS, "fails"], 3)
    assert (found[2].code, found[2].stderr) == (2, "a fault of its own\n")
    check_lost(found, 2, killed=False)


@pytest.mark.slow
@pytest.mark.parametrize("comes", [0, 1])
def test_a_worker_that_never_comes_is_named(comes: int) -> None:
    (found,) = run_workers([PROGRAMS, "late"], 2, start=[comes], environ={"TIMEOUT": "7"})
    assert found.code == 1
    assert found.stderr.startswith(f"worker {1 - comes} (127.0.0.1:")
    assert "did not come within 7 seconds (worker_timeout): connection refused" in found.stderr
    assert f"waiting for worker {1 - comes} (" in found.stdout


@pytest.mark.slow
def test_a_worker_that_comes_late_is_waited_for() -> None:
    found = run_workers([PROGRAMS, "late"], 2)
    assert [each.code for each in found] == [0, 0]
    assert "waiting for worker 1 (127.0.0.1:" in found[0].stdout


@pytest.mark.slow
def test_workers_with_other_addresses_do_not_wait_for_ever() -> None:
    """Both are worker 0, and each takes the other for worker 1."""
    ports = free_ports(2)

    def environ(worker: int) -> dict[str, str]:
        own, other = ports[worker], ports[1 - worker]
        cluster = f'{{"worker": ["127.0.0.1:{own}", "127.0.0.1:{other}"]}}'
        return {**QUICK, "TF_CONFIG": f'{{"cluster": {cluster}, "task": {{"type": "worker", "index": 0}}}}'}

    for each in run_workers([PROGRAMS, "late"], 2, ports=ports, environ=environ):
        assert each.code == 1
        assert each.stderr.count("\n") == 1
        assert "TF_CONFIG" in each.stderr or "cannot be reached" in each.stderr


@pytest.mark.slow
def test_a_port_in_use_is_told_before_tensorflow_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (found,) = run_workers([PROGRAMS, "late"], 2, start=[0], ports=[port, *free_ports(1)])
    assert found.code == 2
    assert found.stderr.startswith(f"port {port} of worker 0 (127.0.0.1:{port}) cannot be used")


@pytest.mark.slow
def test_a_worker_that_is_stopped_for_a_while_is_waited_for_and_for_longer_than_the_timeout_is_lost() -> None:
    stop, go = signal.SIGSTOP, signal.SIGCONT
    for victim in (0, 1):
        kills = [Kill(victim, "ready", stop), Kill(victim, 3.0 + 2.5, go)]
        found = run_workers([PROGRAMS, "alone", "8"], 2, environ=QUICK, kill=kills)
        assert [each.code for each in found] == [0, 0], found
        for program in ("alone", "collectives"):
            kills = [Kill(victim, "ready", stop), Kill(victim, 25.0, signal.SIGKILL)]
            found = run_workers([PROGRAMS, program], 2, environ=QUICK, kill=kills)
            check_lost(found, victim, "has not answered for ")
