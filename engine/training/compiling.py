"""Whether XLA compiles a whole step, and which operation keeps it from doing so.

What cannot be compiled is found in the traced step, before anything is run; what only XLA itself finds is read from its
error, and the step has changed nothing then either.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from engine.devices import computing_kind
from engine.errors import InputError
from engine.text import nearest

JitCompile = Literal["auto", "on", "off"]
CHOICES: tuple[JitCompile, ...] = ("auto", "on", "off")


class CompileError(InputError):
    """A step that XLA cannot compile."""


def check(choice: str) -> JitCompile:
    """Returns a valid choice; raises CompileError if it is none."""
    for known in CHOICES:
        if choice == known:
            return known
    raise CompileError(f"jit_compile={choice!r}: expected auto, on or off{nearest(str(choice), CHOICES)}")


def decide(choice: JitCompile) -> bool:
    """Whether XLA compiles steps: with "auto" where the process computes on a GPU."""
    return choice == "on" or (choice == "auto" and computing_kind() == "gpu")


@dataclass(frozen=True)
class Obstacle:
    """What keeps XLA from compiling a step, in a sentence; ``text`` is None if nothing is known to.

    ``left_out`` says what XLA leaves out where it does compile it.
    """

    text: str | None
    left_out: str | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """The sentences that a user should see."""
        return tuple(note for note in (self.text, self.left_out) if note is not None)

    @classmethod
    def find(cls, choice: JitCompile, function: Any) -> Obstacle:
        """That of a concrete function; raises CompileError with the choice "on" if there is one."""
        from engine.graphs import compilable

        found = compilable.find_obstacle(function, device=computing_kind())
        if found is not None and choice == "on":
            raise refusal(choice, found)
        if found is None:
            return cls(None, compilable.find_assertions(function))
        return cls(f"the step runs without XLA (jit_compile={choice}): {found}")


@contextlib.contextmanager
def explained(choice: str, function: Any) -> Iterator[None]:
    """Within this scope, what XLA says of an operation of a function that it cannot compile becomes a CompileError."""
    import tensorflow as tf

    from engine.graphs import compilable

    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
        if not function.function_def.attr["_XlaMustCompile"].b:
            raise
        raise refusal(choice, compilable.read_error(error.message, function.graph)) from None


def refusal(choice: str, obstacle: str) -> CompileError:
    """The error for a step that cannot be compiled, with the way out."""
    return CompileError(f"jit_compile={choice}: {obstacle}; jit_compile=off runs it")


def list_notes(remat: str) -> tuple[str, ...]:
    """What to know about a compiled step with this mode of rematerialisation."""
    if remat == "none" or computing_kind() != "cpu":
        return ()
    return (f"remat={remat} saves no memory here: for a CPU, XLA computes once what would be recomputed",)
