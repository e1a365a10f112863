"""Several workers of a distributed run in one process: threads that take turns, and exchange values as JSON."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from engine.distribution.distribution import Distribution
from engine.distribution.shares import Share

Made = TypeVar("Made")


class LeftAloneError(Exception):
    """A worker waits for one that has ended: a real one would wait for ever."""


class _Table:
    """Where workers put their values; only one worker works at a time, because tracing has global state."""

    def __init__(self, count: int) -> None:
        self.turn, self.news = threading.Lock(), threading.Condition()
        self.rounds: list[dict[int, str]] = []
        self.exchanged, self.ended = [0] * count, [False] * count

    def exchange(self, worker: int, value: Any) -> list[Any]:
        number = self.exchanged[worker]
        self.turn.release()
        try:
            with self.news:
                self.rounds += [{}] * (number == len(self.rounds))
                here = self.rounds[number]
                here[worker] = json.dumps(value)
                self.exchanged[worker] += 1
                self.news.notify_all()
                while len(here) < len(self.ended):
                    if any(self.ended[other] and other not in here for other in range(len(self.ended))):
                        raise LeftAloneError
                    self.news.wait(1.0)
            return [json.loads(here[each]) for each in sorted(here)]
        finally:
            self.turn.acquire()

    def end(self, worker: int) -> None:
        with self.news:
            self.ended[worker] = True
            self.news.notify_all()


def work_as(count: int, work: Callable[[Distribution], Made]) -> list[Made | Exception]:
    """What ``work`` returns, or raises, on each of ``count`` workers with a replica each.

    All must have exchanged equally often, or the test fails: a real worker would wait for ever.
    """
    table = _Table(count)
    found: list[Any] = [None] * count

    def run(worker: int) -> None:
        distribution = Distribution(
            kind="multiworker",
            workers=count,
            worker=worker,
            addresses=tuple(f"127.0.0.1:{1000 + each}" for each in range(count)),
            share=Share(worker, worker + 1, count),
            exchange=lambda value: table.exchange(worker, value),
        )
        with table.turn:
            try:
                found[worker] = work(distribution)
            except Exception as error:
                found[worker] = error
            finally:
                table.end(worker)

    threads = [threading.Thread(target=run, args=(worker,)) for worker in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(set(table.exchanged)) == 1, f"workers have exchanged {table.exchanged} values: {found}"
    return found


def made_by_all(count: int, work: Callable[[Distribution], Made]) -> list[Made]:
    """As ``work_as``, where none may raise an error."""
    found = []
    for each in work_as(count, work):
        if isinstance(each, Exception):
            raise each
        found.append(each)
    return found
