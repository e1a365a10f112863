"""The run directory: the files of a run, kept up while it goes, as an action of the loop."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from engine.training import checkpoint, phases
from engine import files
from engine.runs import picture, records
from engine import host
from engine.training.checkpoint import Checkpoint
from engine.errors import InputError
from engine.memory.forecast import Forecast
from engine.training.loop import Event, Outcome, Stage, State
from engine.training.phases import Monitor
from engine.training.step import TrainStep
from engine.selection.variables import ModelVariables

_OURS = (
    "run.json",
    "metrics.jsonl",
    "checkpoints",
    "trained.npz",
    "ledger.json",
    "ema.npz",
    "curves.png",
    "frostline.png",
    "tensorboard",
)


_SAME = 1e-5  # relative: a phase may be resumed on another machine, whose products round otherwise


class RunDirectoryError(InputError):
    """A folder that cannot be a run's, or a resume that contradicts it."""


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """What is written how often.

    Attributes:
        log_every: steps between lines of kind=train.
        checkpoint_every: steps between checkpoints; phases end with one in any case.
        keep: how many numbered checkpoints stay.
        keep_best: also keep ``checkpoints/best.npz``, the best by evaluation.
        histograms: of trained variables, at each evaluation, for TensorBoard.
    """

    log_every: int
    checkpoint_every: int
    keep: int = 2
    keep_best: bool = False
    histograms: bool = False


def find_resumable(out: pathlib.Path, *, resume: bool, settings: Mapping[str, Any], warn: Any) -> Checkpoint | None:
    """The checkpoint to go on from; None for a new run.

    Raises:
        RunDirectoryError: the folder holds a run and ``resume`` is False; or a setting differs from the
            checkpoint's (all such are listed); or the folder is a file.
        CheckpointError: all checkpoints are damaged.
    """
    if out.exists() and not out.is_dir():
        raise RunDirectoryError(f"out={out}: it is a file; a folder is wanted")
    held = [name for name in _OURS if (out / name).exists()]
    if held and not resume:
        raise RunDirectoryError(
            f"out={out}: it holds a run ({', '.join(held)}); go on with --resume, or choose another folder"
        )
    found = checkpoint.newest(out / "checkpoints", warn=warn) if resume else None
    if found is None:
        return None
    saved = found.state["settings"]
    differing = [
        f"  --{key}: {saved.get(key)!r} in the checkpoint, {settings.get(key)!r} now"
        for key in dict.fromkeys((*saved, *settings))
        if saved.get(key) != settings.get(key)
    ]
    if differing:
        raise RunDirectoryError(f"resume={out}: flags contradict the checkpoint {found.path.name}:\n" + "\n".join(differing))
    return found


class RunDirectory:
    """Writes a run's files; give ``action`` to the loop and call ``finish`` at the end.

    Args:
        out: the folder; made when missing.
        step: its slots go into checkpoints.
        variables: all of the model's.
        settings: what a resume must not contradict; kept in each checkpoint.
        keeping: what is written how often.
        monitor: what "best" means.
        decided: what was decided at the start and a resume does again: ``plan`` (``forecast.Plan.to_json``)
            ``images`` (``Ledger.images``) and ``cache`` (which phases train from kept features).
        from_step: steps trained before, of a resume: later lines of metrics.jsonl are dropped.
            None is a new run: what one that was killed before its first checkpoint left is dropped.
        ledger: content of ledger.json where a new run's weights were ported; a resume keeps the file that is there.
        say: called with a line when something is left out.
    """

    def __init__(
        self,
        out: pathlib.Path,
        *,
        step: TrainStep,
        variables: ModelVariables,
        settings: Mapping[str, Any],
        keeping: Keeping,
        monitor: Monitor,
        decided: Mapping[str, Any],
        from_step: int | None = None,
        ledger: Mapping[str, Any] | None = None,
        say: Any = print,
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        if from_step is None:
            if ledger is None:
                (out / "ledger.json").unlink(missing_ok=True)
            else:
                files.write_json(out / "ledger.json", ledger)
        self.out = out
        self._step = step
        self._variables = variables
        self._settings = dict(settings)
        self._decided = dict(decided)
        self._keeping = keeping
        self._monitor = monitor
        self._say = say
        self._began = time.perf_counter()
        self._metrics = records.Metrics(out / "metrics.jsonl", keep_to_step=-1 if from_step is None else from_step)
        self._board = self._tensorboard()
        self._seconds: list[float] = []
        self._examples = 0
        self._first: float | None = None
        self._traces = step.traces
        self._activations = 0
        self._slot_bytes = 0
        self._saved = -1

    def draw_lines(self, panels: Sequence[picture.Panel]) -> None:
        """Draws frostline.png: the model, what each phase trains, and its frost line."""
        try:
            picture.draw(self.out / "frostline.png", panels)
        except ImportError:
            self._say("frostline.png is not drawn: the package matplotlib is missing (extra `report`)")

    def action(self, event: Event) -> None:
        """Takes part in the loop."""
        if event.kind == "step":
            self._record(event)
        elif event.kind == "evaluation":
            self._watch(event.state)
            self._add(records.eval_row(event.state.evaluations[-1]))
            if self._board is not None:
                self._board.add_histograms(event.stage.selection, event.state.step)
            if self._keeping.keep_best and self._is_best(event.state):
                self._save(event.state, name="best.npz")
        elif event.kind == "checkpoint":
            due = event.force or event.state.step % self._keeping.checkpoint_every == 0
            if due and event.state.step != self._saved:
                self._save(event.state)
                checkpoint.prune(self.out / "checkpoints", self._keeping.keep)

    def _watch(self, state: State) -> None:
        """What is frozen puts out the same as long as a phase lasts; says so when it does not."""
        last = state.evaluations[-1]
        earlier = [e.frozen_output_norm for e in state.evaluations[:-1] if e.phase == last.phase]
        if last.frozen_output_norm is None or not earlier or earlier[0] is None:
            return
        if abs(last.frozen_output_norm - earlier[0]) > _SAME * abs(earlier[0]):
            self._say(
                f"WARNING: the frozen part puts out something else than at this phase's start: the norm was {earlier[0]:.9g} "
                f"and is {last.frozen_output_norm:.9g} after {last.step} steps; something frozen has been changed"
            )

    def _record(self, event: Event) -> None:
        if self._step.traces != self._traces:  # the step's time was tracing
            self._traces = self._step.traces
            self._first = event.seconds if self._first is None else self._first
        else:
            self._seconds.append(event.seconds)
            self._examples += event.examples
        self._slot_bytes = max(self._slot_bytes, self._step.slots.bytes())
        if event.state.step % self._keeping.log_every == 0:
            self._add(records.train_row(event))

    def _add(self, row: Mapping[str, Any]) -> None:
        self._metrics.add(row)
        if self._board is not None:
            self._board.add(row)

    def _is_best(self, state: State) -> bool:
        best = phases.best(state.evaluations, self._monitor)
        return best is not None and best.step == state.evaluations[-1].step

    def _save(self, state: State, *, name: str | None = None) -> None:
        checkpoint.save(
            self.out / "checkpoints",
            state.step,
            variables=self._variables,
            arrays=self._step.arrays,
            state={
                "settings": self._settings,
                "decided": self._decided,
                "loop": state.to_json(),
                "step": self._step.state(),
            },
            name=name,
        )
        if name is None:
            self._saved = state.step

    def _tensorboard(self) -> records.TensorBoard | None:
        try:
            import tensorboard  # noqa: F401  (tf.summary needs it)
        except ImportError:
            self._say("tensorboard/ is not written: the package tensorboard is missing (extra `report`)")
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
        code: int,
        reason: str,
    ) -> dict[str, Any]:
        """Writes trained.npz, curves.png and run.json; returns run.json's content.

        Args:
            outcome: how the loop ended.
            stages, per_epoch: what the loop ran.
            forecasts: of memory, one for each stage.
            facts: ``flags``, ``versions``, ``model``, ``data``.
            cache: run.json's ``cache``.
            final: results that run.json's ``final`` adds.
            code, reason: of ``exit``.
        """
        rows = self._phase_rows(outcome, stages, per_epoch)
        begun = [stage for stage, _ in zip(stages, rows, strict=False)]
        selections = [stage.selection for stage in begun]
        records.write_trained(self.out / "trained.npz", self._variables, selections)
        if self._step.averages is not None:
            with self._step.evaluating(self._variables):
                records.write_trained(self.out / "ema.npz", self._variables, selections)
        self._draw(rows)
        if self._board is not None:
            self._board.close()
        train = [row for row in self._metrics.rows if row["kind"] == "train"]
        last = outcome.state.evaluations[-1] if outcome.state.evaluations else None
        run = {
            **facts,
            "phases": rows,
            "steps": outcome.state.step,
            "final": {
                "train_loss": train[-1]["loss"] if train else None,
                "eval_loss": last.loss if last else None,
                "eval_accuracy": last.accuracy if last else None,
                **final,
            },
            "freeze_proof": {
                "verified": all(row["freeze_proof"]["verified"] for row in rows),
                "variables": max((row["freeze_proof"]["variables"] for row in rows), default=0),
                "changed": sorted({path for row in rows for path in row["freeze_proof"]["changed"]}),
            },
            "timing": records.timing(time.perf_counter() - self._began, self._first, self._seconds, self._examples),
            "memory": self._memory(forecasts[: len(begun)]),
            "cache": dict(cache),
            "skipped_steps": self._step.skipped,
            "left_out_terms": dict(self._step.left_out),
            "exit": {"code": code, "reason": reason},
        }
        records.write_run(self.out / "run.json", run)
        return run

    def _phase_rows(self, outcome: Outcome, stages: Sequence[Stage], per_epoch: int) -> list[dict[str, Any]]:
        state = outcome.state
        where = phases.locate([s.phase for s in stages], per_epoch, state.step, state.evaluations, self._monitor)
        rows: list[dict[str, Any]] = []
        start = 0
        for number, stage in enumerate(stages[: len(state.proven) + (state.proof is not None)]):
            ended = number < len(state.proven)  # a run that fails at a phase's last step does not end it
            stop, reason = where.ended[number] if ended and number < len(where.ended) else (state.step, outcome.reason)
            if ended:
                changed = state.proven[number]
            else:
                changed = state.proof.changed(stage.selection) if state.proof is not None else []
            rows.append(
                records.phase_row(
                    stage.selection,
                    name=stage.phase.name,
                    from_step=start,
                    to_step=stop,
                    reason=reason,
                    changed=changed,
                )
            )
            start = stop
        return rows

    def _draw(self, rows: Sequence[Mapping[str, Any]]) -> None:
        try:
            records.draw_curves(
                self.out / "curves.png", self._metrics.rows, [(row["name"], row["from_step"]) for row in rows]
            )
        except ImportError:
            self._say("curves.png is not drawn: the package matplotlib is missing (extra `report`)")

    def _memory(self, begun: Sequence[Forecast]) -> dict[str, Any]:
        """run.json's ``memory``; of several phases the one that needs most is told."""
        most = max(begun, key=lambda forecast: forecast.total, default=None)
        return {
            "forecast_bytes": None if most is None else dataclasses.asdict(most) | {"total": most.total},
            "plan": self._decided["plan"],
            "slot_bytes": self._slot_bytes,
            "peak_rss_bytes": host.peak_rss_bytes(),
        }


