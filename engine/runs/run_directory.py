"""The run directory: the files of a run, kept up to date while it goes on, as an action of the loop."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine import devices, files, host
from engine.memory.forecast import Forecast
from engine.porting.deltas.adapters import AdaptersRecord
from engine.runs import card, picture, records, started
from engine.runs.existing import RunDirectoryError, check_out
from engine.runs.flag_file import write_flag_file
from engine.runs.saved_flags import FINGERPRINT, OF_DATA, DataFacts, list_contradictions, write_flags
from engine.runs.step_means import StepMeans
from engine.selection.variables import ModelVariables
from engine.training import checkpoint, phases
from engine.training.checkpoint import Checkpoint, RunState
from engine.training.loop import Event, Outcome, Stage, State
from engine.training.phases import Monitor
from engine.training.step import TrainStep

_SAME = 1e-5  # relative: a phase may be resumed on another machine, whose products round otherwise


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """What is written, and how often.

    Attributes:
        log_every, checkpoint_every: the numbers of steps between lines of kind=train and between checkpoints; each
            phase ends with a checkpoint in any case.
        keep, keep_best: how many numbered checkpoints are kept, and whether ``checkpoints/best.npz``, the best by
            evaluation, is kept too.
        histograms: whether TensorBoard gets histograms of trained variables at each evaluation.
    """

    log_every: int
    checkpoint_every: int
    keep: int = 2
    keep_best: bool = False
    histograms: bool = False

    def is_due(self, event: Event) -> bool:
        """Whether a numbered checkpoint is to be written at an event."""
        return event.kind == "checkpoint" and (event.force or event.state.step % self.checkpoint_every == 0)


def find_resumable(
    out: pathlib.Path, *, resume: bool, warn: Callable[[str], None], writes: bool = True
) -> tuple[Checkpoint, RunState] | None:
    """The checkpoint to go on from, and the state in it; None for a new run. ``warn`` hears about damaged checkpoints.
    A process that ``writes`` nothing there, as another one does, does not look whether it could.

    Raises:
        RunDirectoryError: the folder holds a run and ``resume`` is False, or it is a file.
        CheckpointError: all checkpoints are damaged.
    """
    if writes:
        check_out(out, resume=resume)
    found = checkpoint.read_newest(out / "checkpoints", warn=warn) if resume else None
    return None if found is None else (found, RunState.read(found))


def check_settings(
    found: tuple[Checkpoint, RunState], settings: Mapping[str, Any], *, warn: Callable[[str], None]
) -> None:
    """Raises RunDirectoryError, which lists them all, if settings differ from those of the checkpoint that is resumed.

    Data are compared by their fingerprint: before ``settings`` hold it, they are not. ``warn`` hears about data that moved.
    """
    (read, state), data = found, ("data", *OF_DATA)
    saved: Mapping[str, Any] = state.settings
    if FINGERPRINT not in settings:
        saved, settings = ({k: v for k, v in each.items() if k not in data} for each in (saved, settings))
    if differing := list_contradictions(saved, settings):
        raise RunDirectoryError(
            f"resume={read.path.parent.parent}: these flags contradict the checkpoint {read.path.name}:\n"
            + "\n".join(differing)
        )
    if (before := saved.get("data")) != settings.get("data"):
        warn(f"data: {settings['data']} has the content that {before} had (the SHA-256 is the same)")


class RunDirectory:
    """Writes a run's files; give ``action`` to the loop and call ``finish`` at the end.

    Args:
        out: the folder; it is created when it is missing.
        step, variables: the step, whose slots go into checkpoints, and all variables of the model.
        start: the state in which the run starts; checkpoints keep it, with the loop and step as they are then.
        resumed: whether ``start`` is a checkpoint's: lines of metrics.jsonl after it are dropped. Otherwise everything
            is dropped that a run left which was killed before its first checkpoint.
        monitor: what "best" means.
        flags, decided, data: all flags of the run, those that were decided for it instead of "auto", and what its data
            decided, which flags.json keeps. Every weights file keeps the names of the classes.
        repeating: the flags that give the same bits again, which flags.cfg keeps.
        ledger: the content of ledger.json if a new run's weights were ported; a resume keeps the existing file.
        changing: the paths of all variables that may change, whose values at the start a delta has digests of.
        say: called with a line when something is left out or looks wrong.
    """

    def __init__(
        self,
        out: pathlib.Path,
        *,
        step: TrainStep,
        variables: ModelVariables,
        start: RunState,
        resumed: bool,
        keeping: Keeping,
        monitor: Monitor,
        flags: Mapping[str, Any],
        decided: Mapping[str, Any],
        repeating: Mapping[str, Any],
        data: DataFacts,
        ledger: Mapping[str, Any] | None,
        changing: Collection[str],
        say: Callable[[str], None],
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        write_flags(out, flags, decided=decided, data=data)
        write_flag_file(out, repeating)
        if resumed:  # a kill may have come between a checkpoint and the end of those that it replaces
            checkpoint.prune(out / "checkpoints", keeping.keep, last=start.loop.step)
        if not resumed and ledger is None:
            (out / "ledger.json").unlink(missing_ok=True)
        elif not resumed:
            files.write_json(out / "ledger.json", ledger)
        if not resumed:
            started.write_start(out, variables, changing)
        self.out = out
        self._step = step
        self._variables = variables
        self._start = start
        self._keeping = keeping
        self._monitor = monitor
        self._say = say
        self._class_names = data.output_names
        self._adapters = None if flags.get("adapt") is None else AdaptersRecord(str(flags["adapt"]), int(flags["seed"]))
        self._began = time.perf_counter()
        self._metrics = records.Metrics(out / "metrics.jsonl", keep_to_step=start.loop.step if resumed else -1)
        self._board = self._tensorboard()
        self._seconds: list[float] = []
        self._examples, self._slot_bytes, self._saved = 0, 0, -1
        self._first: float | None = None
        self._traces = step.traces
        self._means = StepMeans(start.since_line)

    def draw_lines(self, panels: Sequence[picture.Panel]) -> None:
        """Draws frostline.png: the model, what each phase trains, and its frost line."""
        try:
            picture.draw(self.out / "frostline.png", panels)
        except ImportError:
            self._say("frostline.png was not drawn: the package matplotlib is missing (extra `report`)")

    def action(self, event: Event) -> None:
        """Writes what an event of the loop calls for."""
        if event.kind == "step":
            self._record(event)
        elif event.kind == "evaluation":
            self._watch(event.state)
            self._add(records.eval_row(event.state.evaluations[-1]))
            if (freezing := self._start.auto_freeze) is not None:
                for move in [move for move in freezing.moves if move.step == event.state.step]:
                    self._metrics.add(records.freeze_row(move))
            if self._board is not None:
                self._board.add_histograms(event.stage.selection, event.state.step)
            if self._keeping.keep_best and self._is_best(event.state):
                self._save(event.state, name="best.npz")
        elif self._keeping.is_due(event) and event.state.step != self._saved:
            self._save(event.state)
            checkpoint.prune(self.out / "checkpoints", self._keeping.keep)

    def _watch(self, state: State) -> None:
        """Warns when the output of the frozen part changes within a phase, which it must not."""
        last = state.evaluations[-1]
        earlier = [e.frozen_output_norm for e in state.evaluations[:-1] if e.phase == last.phase]
        if last.frozen_output_norm is None or not earlier or earlier[0] is None:
            return
        if abs(last.frozen_output_norm - earlier[0]) > _SAME * abs(earlier[0]):
            self._say(
                f"WARNING: the output of the frozen part is not what it was at the start of this phase: its norm was "
                f"{earlier[0]:.9g} and is {last.frozen_output_norm:.9g} after {last.step} steps; something frozen has changed"
            )

    def _record(self, event: Event) -> None:
        if self._step.traces != self._traces:  # the step's time was tracing
            self._traces = self._step.traces
            self._first = event.seconds if self._first is None else self._first
        else:
            self._seconds.append(event.seconds)
            self._examples += event.examples
        self._slot_bytes = max(self._slot_bytes, self._step.slots.bytes())
        self._means.add(event)
        if event.state.step % self._keeping.log_every == 0:
            self._add(records.train_row(event, self._means.means()))
            self._means.clear()

    def _add(self, row: Mapping[str, Any]) -> None:
        self._metrics.add(row)
        if self._board is not None:
            self._board.add(row)

    def _is_best(self, state: State) -> bool:
        best = phases.best_evaluation(state.evaluations, self._monitor)
        return best is not None and best.step == state.evaluations[-1].step

    def _save(self, state: State, *, name: str | None = None) -> None:
        checkpoint.save(
            self.out / "checkpoints",
            state.step,
            variables=self._variables,
            arrays=lambda: itertools.chain(self._step.arrays(), self._start.arrays()),
            state=dataclasses.replace(
                self._start, loop=state, step=self._step.state(), since_line=self._means.to_json()
            ).to_json(),
            name=name,
            class_names=self._class_names,
        )
        if name is None:
            self._saved = state.step

    def _tensorboard(self) -> records.TensorBoard | None:
        try:
            import tensorboard  # noqa: F401  (tf.summary needs it)
        except ImportError:
            self._say("tensorboard/ was not written: the package tensorboard is missing (extra `report`)")
            return None
        return records.TensorBoard(self.out / "tensorboard", histograms=self._keeping.histograms)

    def finish(
        self,
        outcome: Outcome,
        *,
        stages: Sequence[Stage],
        per_epoch: int,
        forecasts: Sequence[Forecast],
        facts: Mapping[str, Any],
        cache: Mapping[str, Any],
        final: Mapping[str, Any],
        until_first_step: Mapping[str, Any] | None,
        code: int,
        reason: str,
    ) -> dict[str, Any]:
        """Writes trained.npz, curves.png, run.json and card.md; returns run.json's content.

        Args:
            outcome, stages, per_epoch: how the loop ended, and what it ran.
            forecasts: the memory forecast of each stage.
            facts: the entries ``flags``, ``versions``, ``model`` and ``data``.
            cache, final: the entry ``cache``, and results added to the entry ``final``.
            until_first_step: the time of each part until the first step (engine.part_times); None if there was none.
            code, reason: the entry ``exit``.
        """
        rows = self._phase_rows(outcome, stages, per_epoch)
        begun = [stage for stage, _ in zip(stages, rows, strict=False)]
        given: dict[str, Any] = {"selections": [stage.selection for stage in begun], "class_names": self._class_names}
        given["adapters"] = self._adapters
        given["began"] = started.read_start(self.out)
        records.write_trained(self.out / "trained.npz", self._variables, **given)
        if self._step.averages is not None:
            with self._step.evaluating(self._variables):
                records.write_trained(self.out / "ema.npz", self._variables, **given)
        self._draw(rows)
        if self._board is not None:
            self._board.close()
        train = [row for row in self._metrics.rows if row["kind"] == "train"]
        last = outcome.state.evaluations[-1] if outcome.state.evaluations else None
        run = {
            "format": records.RUN_FORMAT,
            **facts,
            "phases": rows,
            "steps": outcome.state.step,
            "final": {
                "train_loss": train[-1]["loss"] if train else None,
                "eval_loss": last.loss if last else None,
                "eval_accuracy": last.accuracy if last else None,
                **records.name_figures(last),
                **final,
            },
            "freeze_proof": {
                "verified": all(row["freeze_proof"]["verified"] for row in rows),
                "variables": max((row["freeze_proof"]["variables"] for row in rows), default=0),
                "changed": sorted({path for row in rows for path in row["freeze_proof"]["changed"]}),
            },
            "timing": records.timing(time.perf_counter() - self._began, self._first, self._seconds, self._examples)
            | {"until_first_step": until_first_step},
            "memory": self._memory(forecasts[: len(begun)]),
            "cache": dict(cache),
            "skipped_steps": self._step.skipped,
            "left_out_terms": dict(self._step.left_out),
            "exit": {"code": code, "reason": reason},
        }
        records.write_run(self.out / "run.json", run)
        card.write_card(self.out, run, stages=begun, evaluations=outcome.state.evaluations)
        return run

    def _phase_rows(self, outcome: Outcome, stages: Sequence[Stage], per_epoch: int) -> list[dict[str, Any]]:
        state = outcome.state
        where = phases.locate([s.phase for s in stages], per_epoch, state.step, state.evaluations, self._monitor)
        rows: list[dict[str, Any]] = []
        start = 0
        for number, stage in enumerate(stages[: len(state.proven) + (state.proof is not None)]):
            ended = number < len(state.proven)  # a run that fails at a phase's last step does not end it
            stop, reason = where.ended[number] if ended and number < len(where.ended) else (state.step, outcome.reason)
            reason = stage.ended_by or reason
            proof = None if ended else state.proof
            changed = state.proven[number] if proof is None else proof.changed(stage.selection)
            found: dict[str, Any] = {"name": stage.phase.name, "reason": reason, "changed": changed}
            rows.append(records.phase_row(stage.selection, from_step=start, to_step=stop, **found))
            start = stop
        return rows

    def _draw(self, rows: Sequence[Mapping[str, Any]]) -> None:
        phase_starts = [(row["name"], row["from_step"]) for row in rows]
        try:
            records.draw_curves(self.out / "curves.png", self._metrics.rows, phase_starts)
        except ImportError:
            self._say("curves.png was not drawn: the package matplotlib is missing (extra `report`)")

    def _memory(self, begun: Sequence[Forecast]) -> dict[str, Any]:
        """The entry ``memory`` of run.json, with the forecast of the phase that needs most."""
        most = max(begun, key=lambda forecast: forecast.total, default=None)
        parts = {} if most is None else dataclasses.asdict(most) | {"total": most.total}
        device = {"device_forecast_bytes": parts.pop("device", None), "device_peak_bytes": devices.peak_device_bytes()}
        return {
            "forecast_bytes": parts or None,
            **(device if devices.computing_kind() == "gpu" else {}),
            "plan": self._start.plan,
            "slot_bytes": self._slot_bytes,
            "peak_rss_bytes": host.peak_rss_bytes(),
        }
