"""On what a run computes, and how: the device, whether XLA compiles its steps, and the precision; decided once.

A checkpoint keeps what was decided. A resume keeps the precision; it may compute on another device, with or without XLA, and says
so, because the last bits may then differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.devices import Device
from engine.host import versions
from engine.recipes.auto_precision import PrecisionChoice, StepMaker, decide_precision
from engine.recipes.config import FinetuneConfig
from engine.training import compiling
from engine.training.checkpoint import CheckpointError
from engine.training.precision import AUTO


@dataclass(frozen=True, kw_only=True)
class Computing:
    """What was decided; ``jit_compile`` is "on", "off" or "auto", which then means XLA where it can compile the step.

    ``measured`` says that measurements decided the precision (``auto``).
    """

    device: Device
    jit_compile: compiling.JitCompile
    precision: PrecisionChoice
    measured: bool = False

    @property
    def compiles(self) -> bool:
        """Whether XLA compiles the steps that it can."""
        return compiling.decide(self.jit_compile)

    def to_json(self) -> dict[str, Any]:
        """The entries of run.json."""
        return {
            "device": self.device.to_json(),
            "jit_compile": self.compiles,
            "precision": self.precision.to_json(),
        }

    def to_state(self) -> dict[str, Any]:
        """What checkpoints keep: figures only where they decided something, so that equal runs have equal checkpoints."""
        precision = self.precision if self.measured else PrecisionChoice(used=self.precision.used, reason="as asked")
        return {"device": self.device.name, "jit_compile": self.compiles, "precision": precision.to_json()}

    def lines(self) -> list[str]:
        """What a run prints of it first."""
        how = "; XLA compiles whole steps" if self.compiles else ""
        return [
            f"device:  {self.device.text()}; TensorFlow {versions()['tensorflow']}{how}",
            f"numbers: {self.precision.used}; {self.precision.reason}",
        ]


def decide_computing(
    config: FinetuneConfig,
    device: Device,
    *,
    saved: Mapping[str, Any] | None,
    make_step: StepMaker,
    say: Callable[[str], None],
) -> Computing:
    """Decides for a run. ``saved`` is what the checkpoint that is resumed has of it: None for a new run, empty if it has nothing.

    ``make_step`` is as in ``engine.recipes.auto_precision``; ``say`` hears what differs from the checkpoint.
    """
    if saved:
        before = (str(saved["device"]), bool(saved["jit_compile"]))
        now = (device.name, compiling.decide(config.jit_compile))
        if now != before:
            told = [f"{name}, XLA {'on' if on else 'off'}" for name, on in (now, before)]
            drawn = ", and Keras layers draw other random numbers" if now[1] != before[1] else ""
            say(
                f"resume: the run computes on {told[0]}; before it was {told[1]}: the last bits of its steps may differ{drawn}"
            )
    if saved and config.precision == AUTO:
        precision = read_choice(saved["precision"])
    else:
        precision = decide_precision(config.precision, device, make_step)
    measured = config.precision == AUTO
    return Computing(device=device, jit_compile=config.jit_compile, precision=precision, measured=measured)


def read_choice(saved: Mapping[str, Any]) -> PrecisionChoice:
    """The choice that a checkpoint holds; raises CheckpointError if it holds none."""
    try:
        return PrecisionChoice(**saved)
    except TypeError as error:
        raise CheckpointError(f"precision: the checkpoint does not say which one the run used ({error})") from None
