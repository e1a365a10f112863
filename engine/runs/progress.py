"""Shows progress on a terminal (as a bar, with rich) or in a log (as aligned lines)."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from engine.runs.step_means import StepMeans
from engine.training.loop import Event


class Progress:
    """An action of the loop that shows how far a run is: step, loss, accuracy and time left.

    ``total`` and ``start`` are the numbers of steps in all phases (at most) and of those already trained; ``log_every``
    is that between lines where there is no terminal or no rich. The accuracy is the mean since the last line. The time
    left is estimated from the steps of the phase without its first, which traces; evaluations are not in it.
    """

    def __init__(self, total: int, *, start: int, log_every: int) -> None:
        self._total, self._log_every = total, log_every
        self._seconds: list[float] = []  # of the steps of this phase
        self._means = StepMeans()
        self._bar, self._task = open_bar(total, start)

    def __call__(self, event: Event) -> None:
        step = event.state.step
        if event.kind == "phase":
            self._seconds = []
            self._say(
                f"phase  | {event.stage.phase.name}: {event.stage.selection.trained_parameters:,} parameters train"
            )
        elif event.kind == "step" and event.result is not None:
            self._seconds.append(event.seconds)
            self._means.add(event)
            facts = {"loss": float(event.result.loss)} | self._means.means()
            text = " | ".join(f"{name}: {value:.4f}" for name, value in facts.items())
            if self._bar is not None:
                self._bar.update(self._task, completed=step, description=f"{event.stage.phase.name} | {text}")
            elif step % self._log_every == 0:
                self._say(f"train  | step: {step:>6}/{self._total} | {text} | left: {self._left(step)}")
            if step % self._log_every == 0:
                self._means.clear()
        elif event.kind == "evaluation":
            last = event.state.evaluations[-1]
            accuracy = "" if last.accuracy is None else f" | accuracy: {last.accuracy:.4f}"
            others = [(name, value) for name, value in last.figures.items() if name != "accuracy"]
            figures = "".join(f" | {name}: {value:.4f}" for name, value in others if isinstance(value, float))
            self._say(f"eval   | step: {step:>6}/{self._total} | loss: {last.loss:.4f}{accuracy}{figures}")

    @contextlib.contextmanager
    def show_progress(self, total: int, what: str) -> Iterator[Callable[..., None]]:
        """Does what the function of that name does, below the bar of this run."""
        if self._bar is None:
            with show_progress(total, what) as show:
                yield show
            return
        task = self._bar.add_task(what, total=total)
        try:
            yield lambda done, _="": self._bar.update(task, completed=done)
        finally:
            self._bar.remove_task(task)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _left(self, step: int) -> str:
        steady = self._seconds[1:] or self._seconds
        seconds = round(sum(steady) / len(steady) * (self._total - step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, flush=True)


@contextlib.contextmanager
def show_each(total: int, what: str) -> Iterator[Callable[[str], None]]:
    """Shows how many of many things are done: a bar on a terminal, otherwise a line every ten seconds.

    Yields a function to be called with the name of each thing that is done.
    """
    numbers = itertools.count(1)
    with show_progress(total, what) as show:
        yield lambda name: show(next(numbers), name)


@contextlib.contextmanager
def show_progress(total: int, what: str) -> Iterator[Callable[..., None]]:
    """Like ``show_each``, but yields a function to be called with the number done so far and, optionally, a name."""
    bar, task = open_bar(total, 0)
    said = time.monotonic()

    def show(done: int, name: str = "") -> None:
        nonlocal said
        text = f"{what} | {name}" if name else what
        if bar is not None:
            bar.update(task, completed=done, description=text)
        elif time.monotonic() - said > 10:
            said = time.monotonic()
            print(f"{what} | {done}/{total}" + (f" | {name}" if name else ""), flush=True)

    try:
        yield show
    finally:
        if bar is not None:
            bar.stop()


def open_bar(total: int, start: int) -> tuple[Any, Any]:
    """A rich progress bar, or (None, None) without a terminal or without rich."""
    if not sys.stdout.isatty():
        return None, None
    try:
        from rich import progress
    except ImportError:
        return None, None
    bar = progress.Progress(
        progress.BarColumn(bar_width=24),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.description}"),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
    )
    bar.start()
    return bar, bar.add_task("tracing", total=total, completed=start)
