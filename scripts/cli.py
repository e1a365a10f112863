"""What every program here does alike: flags, exit codes, signals, and errors without tracebacks.

Exit codes: 0 done (--help too), 1 the work failed, 2 bad flags or input, 3 stopped by a signal.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 3

flags.DEFINE_bool("traceback", False, "On an error, print Python's traceback too.")


def run(main: Callable[[], int], *, about: str, flags_in: str) -> None:
    """Parses flags, runs ``main`` and exits with its code.

    Args:
        main: the program; returns an exit code.
        about: what --help says first.
        flags_in: ``__name__`` of the module that defines the program's flags.
    """
    sys.exit(_run(main, about, flags_in))


def _run(main: Callable[[], int], about: str, flags_in: str) -> int:
    asked = {"-h", "-help", "--help", "--helpshort", "--helpfull"} & set(sys.argv[1:])
    if asked:
        print(about.strip(), _help(flags_in, full="--helpfull" in asked), sep="\n\n")
        return DONE
    name = os.path.basename(sys.argv[0]).removesuffix(".py")
    try:
        rest = flags.FLAGS(sys.argv)
        if len(rest) > 1:
            raise flags.Error(f"{rest[1]!r}: every argument is a --flag")
    except flags.Error as error:
        return _fail(name, error, BAD_INPUT, "--help lists the flags")
    return answer(name, main)


def answer(name: str, main: Callable[[], int]) -> int:
    """The exit code of ``main``; whatever it raises is told in a sentence that begins with the program's name."""
    try:
        import_tensorflow()
        return main()
    except KeyboardInterrupt:
        return _fail(name, "stopped", STOPPED)
    except BrokenPipeError:  # who read our output has enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except MemoryError:
        return _fail(name, "out of memory: a smaller --batch_size needs less", FAILED)
    except Exception as error:  # whatever it is, a user gets a sentence
        if isinstance(error, ModuleNotFoundError) and error.name == "tensorflow":
            return _fail(name, "TensorFlow is missing: pip install 'frostline[cpu]' (or [gpu])", FAILED)
        from engine.errors import InputError

        if isinstance(error, InputError):
            return _fail(name, error, BAD_INPUT)
        return _fail(name, f"{type(error).__name__}: {error}", FAILED, "--traceback shows where")


def _fail(name: str, error: object, code: int, hint: str = "") -> int:
    if "traceback" in flags.FLAGS and flags.FLAGS.is_parsed() and flags.FLAGS.traceback and sys.exc_info()[0]:
        import traceback

        traceback.print_exc()
    print(f"{name}: {error}" + (f"\n({hint})" if hint else ""), file=sys.stderr)
    return code


def check_numbers(limits: Mapping[str, tuple[int, int]]) -> None:
    """Raises InputError unless each flag lies between its least and its most value, and ``--seed`` is no less than 0."""
    from engine.errors import InputError

    for name, (least, most) in limits.items():
        if not least <= flags.FLAGS[name].value <= most:
            raise InputError(f"{name}={flags.FLAGS[name].value}: it must be from {least} to {most}")
    if flags.FLAGS.seed < 0:
        raise InputError(f"seed={flags.FLAGS.seed}: it must be at least 0")


def check_out(out: str | None) -> None:
    """Raises InputError unless ``--out`` can be written as a file, or is not given."""
    from engine.errors import InputError

    if out is not None:
        folder = os.path.dirname(out) or "."
        if not os.path.isdir(folder) or os.path.isdir(out) or not os.access(folder, os.W_OK):
            raise InputError(f"out={out!r}: it must be a file in an existing folder that can be written to")


def own_flags(module: str) -> dict[str, Any]:
    """Name -> value of the flags that a program defines itself (``module`` is its ``__name__``)."""
    defined = flags.FLAGS.flags_by_module_dict()
    return {flag.name: flag.value for flag in defined.get(_registered(module), [])}


def _registered(module: str) -> str:
    return sys.argv[0] if module == "__main__" else module  # absl's name for the main module


def _help(module: str, *, full: bool) -> str:
    """The program's own flags; with ``full``, those of libraries too."""
    defined = flags.FLAGS.flags_by_module_dict()
    own = [_registered(module), __name__]
    others = [name for name in sorted(defined) if name not in own] if full else []
    found: list[str] = []
    for name in (*own, *others):
        for flag in defined.get(name, []):
            default = "" if flag.default in (None, [], "") else f" (default: {flag.default_as_str})"
            text = textwrap.fill(f"{flag.help}{default}", 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
            found.append(f"  --{flag.name}\n{text}")
    return "flags:\n" + "\n".join(found)


def import_tensorflow(*, start: bool = True) -> Any:
    """Imports TensorFlow without its start-up messages, which no setting silences, and without matplotlib.

    Keras, which TensorFlow imports, would import matplotlib for two functions that plot: a third of all the time.
    Unless told not to, it starts the runtime too, whose threads no fork outlives. What was imported is kept from the
    garbage collector, which would look through all of it again and again while functions are traced.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    first, hide = "tensorflow" not in sys.modules, "matplotlib" not in sys.modules
    if hide:
        sys.modules["matplotlib"] = None  # type: ignore[assignment]
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as hidden:
        os.dup2(hidden.fileno(), 2)
        try:
            import tensorflow as tf

            if start:
                tf.constant(0)
        except BaseException:
            hidden.seek(0)
            os.write(before, hidden.read())
            raise
        finally:
            os.dup2(before, 2)
            os.close(before)
            if hide:
                del sys.modules["matplotlib"]
    if first:
        gc.freeze()
    return tf


class StopSignal:
    """SIGINT and SIGTERM ask the loop to stop after this step; a second one stops at once."""

    def __init__(self) -> None:
        self.name: str | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._take)

    def __call__(self) -> bool:
        return self.name is not None

    def _take(self, number: int, _frame: object) -> None:
        if self.name is not None:
            os.write(2, b"\nstopped at once; the last checkpoint stands\n")
            os._exit(STOPPED)
        self.name = signal.Signals(number).name
        os.write(2, f"\n{self.name}: stopping after this step (again: at once)\n".encode())
