"""What all programs share: flags, exit codes, signals, and errors without tracebacks.

A program is a module with flags, ``main`` and ``run``. ``main`` first checks everything it can without TensorFlow, then
calls ``import_tensorflow`` and does the job, so that ``--help`` and mistakes are answered at once.

Exit codes: 0 done (also --help), 1 the work failed, 2 bad flags or input, 3 stopped by a signal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import signal
import sys
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

from absl import flags

DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 3
_BOOLEANS = ("", "true", "false", "t", "f", "1", "0", "yes", "no")
_held = contextlib.ExitStack()  # what the program that runs keeps others from writing
_DEFINE: dict[type, Callable[..., Any]] = {
    str: flags.DEFINE_string,
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    list: flags.DEFINE_list,
}

flags.DEFINE_string(
    "memory_limit",
    None,
    "Memory that what a file declares may take, in bytes or with a unit (3GB, 8GiB); a file that declares more is refused "
    "before anything is read (default: what is free).",
)
flags.DEFINE_bool("traceback", False, "Print Python's traceback with an error.")


def run(main: Callable[[], int], *, about: str, flags_in: str) -> None:
    """Parses flags, runs ``main`` and exits with its code.

    ``about`` is the text at the top of ``--help``, ``flags_in`` the ``__name__`` of the module with the program's flags.
    """
    sys.exit(_run(main, about, flags_in))


def _run(main: Callable[[], int], about: str, flags_in: str) -> int:
    name = os.path.basename(sys.argv[0]).removesuffix(".py")
    asked = {"-h", "-help", "--help", "--helpshort", "--helpfull"} & set(sys.argv[1:])
    if asked:
        return answer(name, lambda: _print_help(about, flags_in, full="--helpfull" in asked))
    try:
        _check_flagfiles(sys.argv[1:])
        _check_resume(name)
        rest = flags.FLAGS(sys.argv)
        if len(rest) > 1:
            if "--resume" in sys.argv[1:]:
                at = sys.argv.index("--resume") + 1
                at = at if sys.argv[at : at + 1] == rest[1:2] else sys.argv.index(rest[1], 1)
                _refuse_folder(name, sys.argv[1:at] + sys.argv[at + 1 :], rest[1])
            raise flags.Error(f"unexpected argument {rest[1]!r}; expected only --flags")
        _set_memory_limit()
    except (flags.Error, ValueError) as error:
        return _fail(name, error, BAD_INPUT, "--help lists the flags")
    return answer(name, main)


def _check_resume(name: str) -> None:
    """Raises flags.Error for --resume=DIR; absl would only say that DIR is not a boolean."""
    for place, word in enumerate(sys.argv[1:], start=1):
        given, equals, folder = word.partition("=")
        if given in ("--resume", "-resume") and equals and folder.lower() not in _BOOLEANS and "resume" in flags.FLAGS:
            _refuse_folder(name, [*sys.argv[1:place], "--resume", *sys.argv[place + 1 :]], folder)


def _refuse_folder(name: str, words: Sequence[str], folder: str) -> NoReturn:
    """Raises flags.Error for a folder after --resume, with the whole command to type instead."""
    if not any(word.startswith(("--out=", "-out=")) or word in ("--out", "-out") for word in words):
        words = [*words, f"--out={folder}"]
    command = name if " " in name else f"python -m scripts.{name}"
    raise flags.Error(
        f"resume: it does not take a folder ({folder!r}), because --out names the run; type\n"
        f"  {command} {shlex.join(words)}"
    )


def _check_flagfiles(words: Sequence[str], depth: int = 0) -> None:
    """Raises InputError for a ``--flagfile`` that absl would read for ever: a pipe, a device, or one inside itself."""
    for position, word in enumerate(words):
        name, equals, value = word.strip().partition("=")
        if name not in ("-flagfile", "--flagfile"):
            continue
        from engine.errors import InputError
        from engine.reading import check_regular, read_file

        path = os.path.expanduser(value if equals else words[position + 1] if position + 1 < len(words) else "")
        check_regular(path)
        if depth > 16:
            raise InputError(f"flagfile={path!r}: the files name each other more than 16 levels deep")
        lines = read_file(path, 1 << 20).decode(errors="replace").splitlines()
        _check_flagfiles([line for line in lines if not line.lstrip().startswith("#")], depth + 1)


def _set_memory_limit() -> None:
    if (text := flags.FLAGS.memory_limit) is not None:
        from engine.sizes import parse_bytes

        os.environ["FROSTLINE_MEMORY_LIMIT"] = str(parse_bytes(text, name="memory_limit"))


def answer(name: str, main: Callable[[], int]) -> int:
    """Returns the exit code of ``main``. An exception becomes one sentence on stderr, after the program's name."""
    try:
        with _held:
            return main()
    except KeyboardInterrupt:
        return _fail(name, "stopped", STOPPED)
    except BrokenPipeError:  # the reader closed the pipe, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except MemoryError:
        hint = "; a smaller --batch_size needs less" if "batch_size" in flags.FLAGS else ""
        return _fail(name, f"out of memory{hint}", FAILED)
    except Exception as error:  # a user gets a sentence whatever happens
        if isinstance(error, ModuleNotFoundError) and error.name == "tensorflow":
            return _fail(name, "TensorFlow is not installed; run pip install 'frostline[cpu]' (or [gpu])", FAILED)
        from engine.errors import InputError

        if isinstance(error, InputError):
            return _fail(name, error, BAD_INPUT)
        from engine.distribution.distribution import StoppedError, WorkerLostError
        from engine.distribution.together import PeerFailedError

        if isinstance(error, (WorkerLostError, PeerFailedError)):  # the message names the worker
            return _fail(name, error, FAILED)
        if isinstance(error, StoppedError):
            return _fail(name, error, STOPPED)
        from engine import writing

        if isinstance(error, OSError) and error.errno in writing.FULL:
            known = isinstance(error, writing.NoSpaceError)
            return _fail(name, error if known else writing.no_space(error.errno, error.filename or "", 0), FAILED)
        return _fail(name, f"{type(error).__name__}: {error}", FAILED, "--traceback shows where")


def _fail(name: str, error: object, code: int, hint: str = "") -> int:
    if "traceback" in flags.FLAGS and flags.FLAGS.is_parsed() and flags.FLAGS.traceback and sys.exc_info()[0]:
        import traceback

        traceback.print_exc()
    print(f"{name}: {error}" + (f"\n({hint})" if hint else ""), file=sys.stderr)
    return code


def name_words(words: Sequence[str], names: Sequence[str], *, switches: Collection[str]) -> list[str]:
    """A command line whose first words that are neither flags nor values of flags become the values of flags ``names``.

    ``switches`` are the flags after which no value follows.

    Example:
        >>> name_words(["a.npz", "--show", "3", "b.npz"], ["first", "second"], switches=())
        ['--first=a.npz', '--show', '3', '--second=b.npz']
    """
    named, left = [], list(names)
    for place, word in enumerate(words):
        before = words[place - 1] if place else ""
        value = before.startswith("--") and "=" not in before and before not in switches
        named.append(word if word.startswith("-") or value or not left else f"--{left.pop(0)}={word}")
    return named


def check_numbers(limits: Mapping[str, tuple[int, int]]) -> None:
    """Raises InputError unless each flag lies between its least and its greatest value, and ``--seed`` is at least 0."""
    from engine.errors import check_range

    for name, (least, most) in limits.items():
        check_range(name, flags.FLAGS[name].value, least, most)
    check_range("seed", flags.FLAGS.seed, 0)


def check_out(out: str | None) -> None:
    """Raises InputError unless ``out`` is None or a file that can be written; no other process can write it until the end."""
    from engine import locks, writing

    if out is not None:
        writing.check_file(out)
        _held.enter_context(locks.hold_file(out))
        writing.sweep(os.path.dirname(out) or ".", os.path.basename(out).__eq__)


def hold_folder(folder: str, *, ours: Callable[[str], object]) -> None:
    """Creates a folder for files of ``ours``, by name, and keeps other processes out of it until the program ends.

    Raises InputError if files cannot be written into it, or another process works in it.
    """
    from engine import locks, writing

    writing.check_folder(folder)
    os.makedirs(folder, exist_ok=True)
    _held.enter_context(locks.hold_folder(folder))
    writing.sweep(folder, ours)


def write_out(found: Any) -> None:
    """Writes what a program has found into the JSON file ``--out``, if one is given."""
    if out := flags.FLAGS.out:
        from engine.files import write_json

        write_json(out, found)
        print(f"\nwritten: {out}")


def field_defaults(config: type) -> dict[str, Any]:
    """The ``defaults`` of flags that are the fields of a dataclass."""
    types = {"str": str, "int": int, "float": float, "bool": bool}
    found = {}
    for field in dataclasses.fields(config):
        empty = types.get(str(field.type).split(" | ")[0]) if field.default is None else field.default
        found[field.name] = list(empty) if isinstance(empty, tuple) else empty
    return found


def define_flags(
    module: str,
    helps: Mapping[str, str],
    defaults: Mapping[str, Any],
    *,
    choices: Mapping[str, Sequence[str]] = {},
    repeatable: Sequence[str] = (),
) -> None:
    """Defines a flag of a program for each help text.

    ``module`` is the ``__name__`` of the module whose flags they are. ``defaults`` holds the default of a flag (a list is
    comma-separated) or, where there is none, its type; flags that are not in it are texts.
    """
    for name, text in helps.items():
        default = defaults.get(name, str)
        kind, value = (default, None) if isinstance(default, type) else (type(default), default)
        if name in choices:
            flags.DEFINE_enum(name, value, choices[name], text, module_name=_registered(module))
        else:
            define = flags.DEFINE_multi_string if name in repeatable else _DEFINE[kind]
            define(name, value, text, module_name=_registered(module))


def _registered(module: str) -> str:
    return sys.argv[0] if module == "__main__" else module  # absl's name for the main module


def _print_help(about: str, module: str, *, full: bool) -> int:
    """Prints the program's own flags; with ``full``, those of libraries too."""
    print(about.strip(), end="\n\nflags:\n")
    defined = flags.FLAGS.flags_by_module_dict()
    own = [_registered(module), __name__]
    others = [name for name in sorted(defined) if name not in own] if full else []
    for name in (*own, *others):
        for flag in defined.get(name, []):
            default = "" if flag.default in (None, [], "") else f" (default: {flag.default_as_str})"
            text = textwrap.fill(f"{flag.help}{default}", 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
            print(f"  --{flag.name}\n{text}")
    sys.stdout.flush()
    return DONE


def needs_keras(model: str) -> bool:
    """True for a ``--model`` that Keras builds, or may build."""
    return not model.startswith(("vit:", "cnn:"))


def import_tensorflow(*, start: bool = True, keras: bool = True, device: str = "auto") -> Any:
    """Imports TensorFlow as ``engine.host.import_tensorflow`` does, and returns it."""
    from engine import host

    return host.import_tensorflow(start=start, keras=keras, device=device)


class StopSignal:
    """True once SIGINT or SIGTERM has asked the loop to stop after the current step; a second signal exits at once."""

    def __init__(self) -> None:
        self.name: str | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._take)

    def __call__(self) -> bool:
        return self.name is not None

    def _take(self, number: int, _frame: object) -> None:
        if self.name is not None:
            os.write(2, b"\nstopped at once; the last checkpoint remains\n")
            os._exit(STOPPED)
        self.name = signal.Signals(number).name
        os.write(2, f"\n{self.name}: stopping after this step (a second signal stops at once)\n".encode())
