"""Rules about the rooms themselves: who may import whom, where one question is answered, and how long things are."""

from __future__ import annotations

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("engine", "compat_v1", "scripts")
GROUND_NAMES = "errors part_times lazy locks reading writing files trial patterns text sizes digests seeds devices host outside_names tensorflow_private keras_private"
GROUND = GROUND_NAMES.split()
# Each room may import the rooms to its left. A lazy import is an import.
ORDER = (
    "ground",
    "engine.distribution",
    "engine.data",
    "engine.graphs",
    "engine.selection",
    "engine.training",
    "engine.frostline",
    "engine.memory",
    "engine.porting",
    "engine.models",
    "engine.feature_cache",
    "engine.runs",
    "engine.audit",
    "engine.testing",
    "engine.recipes",
    "engine.export",
    "engine.study",
    "engine",
    "compat_v1",
    "scripts",
)
PATHS = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_of(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in PATHS}


@functools.cache
def tree_of(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def nodes_of(path: pathlib.Path) -> tuple[ast.AST, ...]:
    """The nodes of a file that one of the rules here looks at."""
    looked_at = (ast.Import, ast.ImportFrom, ast.Attribute, ast.FunctionDef, ast.AsyncFunctionDef)
    return tuple(node for node in ast.walk(tree_of(path)) if isinstance(node, looked_at))


def room_of(module: str) -> str:
    """The room of a module: a package under engine/, the ground, or the whole of compat_v1 and scripts."""
    first, _, rest = module.partition(".")
    if first != "engine" or not rest:
        return first
    name = rest.split(".")[0]
    return "ground" if name in GROUND else f"engine.{name}"


def imported(path: pathlib.Path) -> set[str]:
    """The project's modules that a file imports, lazily or not; names are resolved to the modules that they are."""
    module = module_of(path)
    found: set[str] = set()
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module if path.name == "__init__.py" else module.rpartition(".")[0]
                for _ in range(node.level - 1):
                    package = package.rpartition(".")[0]
                base = f"{package}.{base}".strip(".") if base else package
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.add(whole if whole in MODULES else base)
    return {name for name in found if name.split(".")[0] in PACKAGES and name != module}


@functools.cache
def imports() -> dict[str, set[str]]:
    """The project's modules that each one imports; not while tests are collected, which every worker does."""
    return {module: imported(path) for module, path in MODULES.items()}


def test_every_module_lies_in_a_room_and_there_are_at_most_twenty() -> None:
    rooms = {room_of(module) for module in MODULES}
    assert rooms <= set(ORDER), rooms - set(ORDER)
    assert len(rooms) <= 20


def test_no_room_imports_a_room_to_its_right() -> None:
    upward = [
        f"{module} ({room_of(module)}) imports {name} ({room_of(name)})"
        for module, names in imports().items()
        for name in sorted(names)
        if module != "engine" and ORDER.index(room_of(name)) > ORDER.index(room_of(module))
    ]
    assert not upward, "\n".join(upward)


def test_no_modules_import_each_other_in_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module not in done:
            for name in sorted(imports().get(module, ())):
                if name in MODULES:
                    visit(name, (*way, module))
            done.add(module)

    for module in sorted(MODULES):
        visit(module, ())


def test_only_the_programs_know_flags() -> None:
    for path in PATHS:
        if path.is_relative_to(ROOT / "scripts"):
            continue
        for node in nodes_of(path):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            names += [f"{node.module}.{name}" for name in names] if isinstance(node, ast.ImportFrom) else []
            assert "absl.flags" not in names, f"{path.relative_to(ROOT)} reads flags"


def test_only_the_selection_and_the_walk_ask_whether_a_variable_is_trainable() -> None:
    for path in [*(ROOT / "engine").rglob("*.py"), *(ROOT / "scripts").glob("finetune*.py")]:
        if path.name in {"selection.py", "walk.py"}:
            continue
        asked = [
            node.lineno
            for node in nodes_of(path)
            if isinstance(node, ast.Attribute)
            and node.attr in {"trainable", "trainable_variables", "trainable_weights"}
        ]
        assert not asked, f"{path.name}:{asked}"


def test_the_engine_imports_with_numpy_absl_and_tensorflow_alone() -> None:
    code = """
import importlib, pkgutil, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"rich", "matplotlib", "tensorboard", "safetensors", "PIL", "pandas", "scipy", "compat_v1"}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import engine
for module in pkgutil.walk_packages(engine.__path__, "engine."):
    importlib.import_module(module.name)
print("imported")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == "imported", done.stderr


def test_the_ground_needs_no_tensorflow() -> None:
    code = f"""
import importlib, sys
for name in {GROUND!r}:
    importlib.import_module("engine." + name)
print("tensorflow" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == "False", done.stderr


def test_private_names_of_tensorflow_and_keras_have_one_module_each() -> None:
    for path in PATHS:
        if path.name in {"tensorflow_private.py", "keras_private.py"}:
            continue
        for node in nodes_of(path):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert not name.startswith(("tensorflow.python", "keras.src")), f"{path.name}: {name}"


def test_no_room_imports_keras_before_a_keras_model_is_asked_for() -> None:
    for path in (ROOT / "engine").rglob("*.py"):
        for node in tree_of(path).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] in {"keras", "h5py"}], path.name


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_longer_than_400_lines_and_no_function_than_80(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, path.name
        for node in nodes_of(path):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert (node.end_lineno or 0) - node.lineno < 80, f"{path.name}: {node.name}"


def test_no_two_test_files_have_the_same_name() -> None:
    """pytest imports them by name, and could not collect both in one run."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
