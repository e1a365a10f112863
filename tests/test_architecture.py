"""Rules about the rooms themselves: who imports whom, and where one question is answered."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def imports(path: pathlib.Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_engine_imports_neither_compat_v1_nor_scripts_nor_flags() -> None:
    for path in (ROOT / "engine").rglob("*.py"):
        for name in imports(path):
            assert name.split(".")[0] not in {"compat_v1", "scripts"}, f"{path.name} imports {name}"
            assert name != "absl.flags", f"{path.name} reads flags"


def test_only_selection_and_variables_ask_whether_a_variable_is_trainable() -> None:
    for path in [*(ROOT / "engine").rglob("*.py"), ROOT / "scripts/finetune.py"]:
        if path.name in {"selection.py", "variables.py"}:
            continue
        asked = [
            node.lineno
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
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


def test_no_room_imports_keras_before_a_keras_model_is_asked_for() -> None:
    for path in (ROOT / "engine").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] in {"keras", "h5py"}], path.name


def test_no_file_is_longer_than_400_lines() -> None:
    for room in ("engine", "compat_v1", "scripts"):
        for path in (ROOT / room).rglob("*.py"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path.name
