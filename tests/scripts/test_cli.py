"""The command ``frostline`` and what all programs share: help, mistakes and versions are answered at once."""

from __future__ import annotations

import ast
import importlib
import pathlib
import subprocess
import sys

import pytest

import engine
from scripts import __main__ as frostline
from scripts import cli

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEAVY = ("tensorflow", "keras", "h5py", "matplotlib")
# Runs each command line in turn, and prints after each its exit code and what it has imported of HEAVY.
EACH = f"""
import importlib, json, sys
from absl import flags
from absl.testing import flagsaver
from scripts import __main__ as frostline
for words in json.loads(sys.argv[1]):
    sys.argv = ["frostline", *words]
    if words and (name := words[0].replace("-", "_")) in frostline.PROGRAMS:
        importlib.import_module("scripts." + name)
    try:
        with flagsaver.flagsaver():
            flags.FLAGS.unparse_flags()
            frostline.run()
    except SystemExit as end:
        print("code", end.code, [name for name in {HEAVY!r} if name in sys.modules], flush=True)
"""
# Flags without which a program does not look at the others.
REQUIRED = {
    "pack_weights": ["--source=x", "--out=y"],
    "make_pretraining_set": ["--out=y"],
    "diff": ["a", "b"],
    "migrate": ["old"],
}
# Two mistakes in flags, such as values that no job can have, of the programs that check them before TensorFlow is there.
MISTAKES: dict[str, list[tuple[str, str]]] = {
    "finetune": [("--steps=0", "steps=0"), ("--seed=-1", "seed=-1")],
    "export": [("--format=keras", "run=None"), ("--quantize=int4", "quantize")],
    "push_delta": [("--to=x", "delta=None"), ("--delta=x", "to=None")],
    "port_checkpoint": [("--source=x", "target=None"), ("--target=vit:mini", "source=None")],
    "migrate": [("--tags=x", "old=None"), ("--checkpoint=x", "old=None")],
    "inspect_checkpoint": [("--merge_parts", "source=None"), ("--filter=(", "source=None")],
    "audit_graph": [("--train_op=x", "graph=None"), ("--out=x/y/z", "graph=None")],
    "predict": [("--top=2", "run, model: expected one"), ("--run=x", "--texts (a file or a folder of texts)")],
    "evaluate": [("--out=x", "run, model: expected one"), ("--model=vit:mini", "data: expected the name")],
    "pack_weights": [("--source=x", "out"), ("--out=x", "source")],
    "make_pretraining_set": [("--source=x", "out"), ("--classes=1", "out")],
}


def run(*commands: list[str]) -> tuple[list[str], str, str]:
    """(the lines that begin with "code", all that was printed, stderr)."""
    import json

    done = subprocess.run(
        [sys.executable, "-c", EACH, json.dumps(commands)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("code")], done.stdout, done.stderr


def programs() -> set[str]:
    """Modules of scripts/ that can be started."""
    found = set()
    for path in (ROOT / "scripts").glob("*.py"):
        names = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        if {"main", "run"} <= names:
            found.add(path.stem)
    return found


def test_every_program_is_a_command() -> None:
    assert set(frostline.PROGRAMS) == programs()
    assert len(frostline.PROGRAMS) == len(set(frostline.PROGRAMS))


@pytest.mark.parametrize("program", sorted(programs() - {"pack_weights"}))
def test_a_program_imports_tensorflow_through_cli_alone(program: str) -> None:
    """So that it does it once, quietly, and after its flags were checked; pack_weights needs none."""
    text = (ROOT / f"scripts/{program}.py").read_text()
    (main,) = [n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == "main"]
    calls = [node.func for node in ast.walk(main) if isinstance(node, ast.Call)]
    assert any(isinstance(call, ast.Attribute) and call.attr == "import_tensorflow" for call in calls)


def test_no_command_names_the_package_scripts() -> None:
    """Installed, it has another name: children are started by ``__package__``, imports are relative."""
    for path in (ROOT / "scripts").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level or (node.module or "").split(".")[0] != "scripts", f"{path.name}:{node.lineno}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not (node.value.startswith("scripts.") and " " not in node.value), f"{path.name}:{node.lineno}"


def test_help_lists_every_program_in_a_line_of_its_own() -> None:
    codes, out, _ = run(["--help"], ["--version"])
    assert codes == ["code 0 []"] * 2
    assert f"frostline {engine.__version__}\n" in out
    for name in frostline.PROGRAMS:
        about = (importlib.import_module("scripts").__path__[0], f"{name}.py")
        first = pathlib.Path(*about).read_text().split("\n", 1)[0].strip('"')
        (line,) = [line for line in out.splitlines() if line.split()[:1] == [name.replace("_", "-")]]
        assert " ".join(first.split()[:4]) in line


def test_an_unknown_command_is_answered_with_the_nearest_and_exit_code_2() -> None:
    codes, _, err = run(["fintune"], ["port-checkpoints"], [], ["--model=x"])
    assert codes == ["code 2 []"] * 4
    assert "frostline: 'fintune' is not a command; nearest: finetune, migrate\n" in err
    assert "'port-checkpoints' is not a command; nearest: port-checkpoint" in err
    assert "frostline: expected a command\n(frostline --help lists the commands)\n" in err


@pytest.mark.parametrize("program", sorted(programs()))
def test_help_and_mistakes_are_answered_without_tensorflow(program: str) -> None:
    mistakes = [[program, word] for word, _ in MISTAKES.get(program, [])]
    surplus = [program, *REQUIRED.get(program, []), "word"]
    codes, out, err = run([program.replace("_", "-"), "--help"], [program, "--nope"], surplus, *mistakes)
    assert codes == ["code 0 []", *["code 2 []"] * (2 + len(mistakes))], out + err
    assert "flags:\n  --" in out
    name = f"frostline {program.replace('_', '-')}"
    assert f"{name}: Unknown command line flag 'nope'" in err
    assert f"{name}: unexpected argument 'word'; expected only --flags" in err
    for _, said in MISTAKES.get(program, []):
        assert said in err


def test_words_are_named_where_no_flag_takes_them() -> None:
    def named(*words: str) -> list[str]:
        return cli.name_words(words, ["first", "second"], switches=("--force_base",))

    assert named("a", "b") == ["--first=a", "--second=b"]
    assert named("--show=3", "a", "--out", "x.json", "b") == ["--show=3", "--first=a", "--out", "x.json", "--second=b"]
    assert named("--force_base", "a", "b", "c") == ["--force_base", "--first=a", "--second=b", "c"]


def test_resume_with_a_folder_is_answered_with_the_command_to_type() -> None:
    lines = [
        ["finetune", "--resume=runs/a b", "--steps=3"],
        ["finetune", "--steps=3", "--resume", "runs/a b", "--seed=1"],
        ["finetune", "--resume", "--out=runs/b", "runs/a b"],
        ["finetune", "--resume=runs/a", "--steps=0"],
    ]
    codes, _, err = run(*lines)
    assert codes == ["code 2 []"] * 4
    said = [line.strip() for line in err.splitlines() if line.startswith("  frostline finetune")]
    assert said == [
        "frostline finetune --resume --steps=3 '--out=runs/a b'",
        "frostline finetune --steps=3 --resume --seed=1 '--out=runs/a b'",
        "frostline finetune --resume --out=runs/b",
        "frostline finetune --resume --steps=0 --out=runs/a",
    ]
    assert "resume: it does not take a folder ('runs/a b'), because --out names the run; type\n" in err


def test_a_pipe_that_is_closed_ends_help_without_a_traceback() -> None:
    command = f"{sys.executable} -m scripts finetune --help | head -1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.startswith("Fine-tune a model")


def test_keras_is_not_imported_before_a_keras_model_is_asked_for() -> None:
    """And TensorFlow's own aliases of it, which users' code imports, still work afterwards."""
    code = """
import sys
from scripts import cli, finetune
sys.argv = ["finetune", "--dry_run", "--model=vit:mini,depth=1", "--weights=none", "--train=@head", "--train_examples=64", "--cache=off"]
try:
    finetune.run()
except SystemExit as end:
    print("code", end.code, "tensorflow" in sys.modules, "keras" in sys.modules, "matplotlib" in sys.modules)
from tensorflow.keras.layers import Dense
import tensorflow as tf, keras
print(tf.keras.layers.Dense is Dense is keras.layers.Dense)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("code 0 True False False\nTrue\n"), done.stdout + done.stderr
