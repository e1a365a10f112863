"""The command ``frostline``: every program as a sub-command. In a checkout, ``python -m scripts`` is the same."""

from __future__ import annotations

import importlib
import pathlib
import shutil
import sys
import textwrap

from engine import __version__

from . import cli

_MEASURED = "freezing quality step first_step accumulation cache memory loading porting v1 graph distribution"
COMMANDS = {
    "commands": (
        *("finetune", "predict", "evaluate", "export", "push_delta", "apply_delta", "diff"),
        *("migrate", "port_checkpoint", "inspect_checkpoint", "audit_graph", "compare_v1", "endure", "plan_scaling"),
    ),
    "benchmarks": (*(f"benchmark_{name}" for name in _MEASURED.split()), "gpu_check"),
    "making the shipped weights": ("make_pretraining_set", "pack_weights"),
}
PROGRAMS = tuple(name for names in COMMANDS.values() for name in names)


def run() -> None:
    """Runs the sub-command that ``sys.argv`` names, and exits with its code."""
    sys.exit(_run(sys.argv[1:]))


def _run(words: list[str]) -> int:
    command = words[0] if words else ""
    if command in ("-h", "-help", "--help", "help"):
        return cli.answer("frostline", _print_help)
    if command == "--version":
        print(f"frostline {__version__}")
        return cli.DONE
    name = command.replace("-", "_")
    if name not in PROGRAMS:
        print(f"frostline: {_error(command)}\n(frostline --help lists the commands)", file=sys.stderr)
        return cli.BAD_INPUT
    sys.argv = [f"frostline {_spoken(name)}", *words[1:]]
    importlib.import_module(f"{__package__}.{name}").run()
    return cli.DONE


def _error(command: str) -> str:
    from engine.text import nearest

    if not command:
        return "expected a command"
    return f"{command!r} is not a command{nearest(command.replace('_', '-'), [_spoken(name) for name in PROGRAMS])}"


def _print_help() -> int:
    """Prints every command with the first line of its module; no program is imported for it."""
    left = max(map(len, PROGRAMS)) + 4
    width = shutil.get_terminal_size((120, 24)).columns
    print("usage: frostline COMMAND [--flag=value ...]")
    for title, names in COMMANDS.items():
        print(f"\n{title}:")
        for name in names:
            with pathlib.Path(__file__).with_name(f"{name}.py").open(encoding="utf-8") as file:
                about = file.readline().strip().strip('"')
            first = f"  {_spoken(name)}".ljust(left)
            print(textwrap.fill(about, width, initial_indent=first, subsequent_indent=" " * left))
    print(
        "\nfrostline COMMAND --help lists the flags of a command; frostline --version prints the version.", flush=True
    )
    return cli.DONE


def _spoken(name: str) -> str:
    return name.replace("_", "-")


if __name__ == "__main__":
    run()
