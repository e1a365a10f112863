"""The wheel: built from the project, installed in an empty environment, used from another folder."""

from __future__ import annotations

import email
import json
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import zipfile

import pytest

import engine

ROOT = pathlib.Path(__file__).resolve().parents[1]
INSTALLED = {"engine": "engine", "compat_v1": "compat_v1", "scripts": "frostline_programs"}
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
# What a user may write, checked as strictly as mypy can; only the last line is wrong.
USER = """
import engine
from engine import Filter, Selection, TrainStep, audit_step, parse_filter, path, select


def choose(model: object, text: str) -> Selection:
    rule: Filter = parse_filter(text) | path("head/.*")
    return select(model, rule)


def train(step: TrainStep, selection: Selection, batch: dict[str, object]) -> float:
    for finding in audit_step(step, selection, batch).findings:
        print(finding.path)
    return float(step(selection, batch, learning_rate=1e-3).loss)


def start(model: object) -> TrainStep:
    return TrainStep(engine.supervised_loss(model), engine.AdamW(clip_norm=1.0), micro_batch_size=8)


version: str = engine.__version__
wrong: int = select(None, "@head")
"""
USER_OF_CONFIG = """
def run() -> None:
    engine.finetune(engine.FinetuneConfig(model="vit:mini", steps=10))


"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Built from a copy of what git tracks, so that no remains of an earlier build get in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
    )
    for name in filter(None, files.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("frostline-*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A new environment with the wheel and this environment's libraries, but not this checkout."""
    environment = tmp_path_factory.mktemp("environment") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin/python"
    query = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = pathlib.Path(subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip())
    # Folders named in a .pth file are added, but not the .pth files in them, such as that of an editable install.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--force-reinstall", str(wheel)], check=True)
    return environment


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A user's folder that has a package ``scripts``; any import of it leaves a file."""
    package = tmp_path / "scripts"
    package.mkdir()
    trap = "import pathlib\npathlib.Path(__file__).with_name('imported').touch()\n"
    for name in ("__init__", "cli", "finetune", "finetune_flags"):
        (package / f"{name}.py").write_text(trap)
    return tmp_path


def run(folder: pathlib.Path, *command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), cwd=folder, env=CLEAN, capture_output=True, text=True, timeout=300, check=False
    )


def fine_tune(environment: pathlib.Path, folder: pathlib.Path) -> None:
    """Runs the installed command, and checks that nothing but the installed packages did the work."""
    flags = ["--train=@head", "--steps=4", "--train_examples=128", "--batch_size=32", "--out=run"]
    done = run(folder, environment / "bin/frostline", "finetune", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "weights: vit_mini_fashion5.npz, 102 variables loaded" in done.stdout
    assert json.loads((folder / "run/run.json").read_text())["freeze_proof"]["verified"] is True
    assert not (folder / "scripts/imported").exists()
    find = "from importlib.util import find_spec; print(*(find_spec(name).origin for name in %r))"
    where = run(folder, environment / "bin/python", "-c", find % (tuple(INSTALLED.values()),))
    assert where.stdout.count(str(environment)) == 3, where.stdout + where.stderr


def test_the_wheel_holds_weights_data_and_licences_but_no_tests(wheel: pathlib.Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "engine/data/fashion_mnist_mini.npz" in names
    assert "engine/data/fashion_mnist_mini.LICENSE" in names
    assert "engine/models/weights/vit_mini_fashion5.npz" in names
    assert {"engine/study/html/page.css", "engine/study/html/page.js"} <= names
    assert {"engine/py.typed", "compat_v1/py.typed"} <= names
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == set(INSTALLED.values())
    modules = {
        re.sub(f"^{room}/", f"{package}/", str(path.relative_to(ROOT)))
        for room, package in INSTALLED.items()
        for path in (ROOT / room).rglob("*.py")
    }
    assert modules == {name for name in names if name.endswith(".py")}
    weights = zipfile.ZipFile(wheel).getinfo("engine/models/weights/vit_mini_fashion5.npz")
    assert weights.file_size <= 3_000_000


def test_the_wheel_says_what_it_is(wheel: pathlib.Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = f"frostline-{engine.__version__}.dist-info"
    metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
    assert metadata["Version"] == engine.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    classifiers = metadata.get_all("Classifier") or []
    assert "Typing :: Typed" in classifiers
    assert not [each for each in classifiers if each.startswith("License")]  # not allowed next to an expression
    assert metadata["Author"] is None
    assert metadata["Keywords"]
    points = archive.read(f"{info}/entry_points.txt").decode().split()
    assert points == ["[console_scripts]", "frostline", "=", "frostline_programs.__main__:run"]


def test_the_wheel_works_from_another_folder(environment: pathlib.Path, folder: pathlib.Path) -> None:
    fine_tune(environment, folder)


def test_the_command_answers_at_once_from_a_folder_with_its_own_scripts(
    environment: pathlib.Path, folder: pathlib.Path
) -> None:
    command = environment / "bin/frostline"
    assert f"frostline {engine.__version__}\n" == run(folder, command, "--version").stdout
    assert "  port-checkpoint " in run(folder, command, "--help").stdout
    assert "  --learning_rate\n" in run(folder, command, "finetune", "--help").stdout
    assert (
        "  --learning_rate\n"
        in run(folder, environment / "bin/python", "-m", "frostline_programs.finetune", "--help").stdout
    )
    wrong = run(folder, command, "finetune", "--stepz=3")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "frostline finetune: Unknown command line flag 'stepz'. Did you mean: steps" in wrong.stderr
    code = """
import sys
sys.argv = ["frostline", "finetune", "--steps=0"]
from frostline_programs.__main__ import run
try:
    run()
except SystemExit as end:
    print(end.code, "tensorflow" in sys.modules, "scripts" in sys.modules)
"""
    assert run(folder, environment / "bin/python", "-c", code).stdout == "2 False False\n"
    assert not (folder / "scripts/imported").exists()


@pytest.mark.slow
def test_processes_that_a_program_starts_are_the_installed_ones(
    environment: pathlib.Path, folder: pathlib.Path
) -> None:
    done = run(
        folder, environment / "bin/frostline", "benchmark-porting", "--size=16MiB", "--largest=4MiB", "--repeats=1"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (folder / "scripts/imported").exists()


@pytest.mark.slow
def test_mypy_sees_the_types_of_public_names(environment: pathlib.Path, tmp_path: pathlib.Path) -> None:
    user = tmp_path / "user.py"
    more = USER_OF_CONFIG if "FinetuneConfig" in engine.__all__ else ""
    user.write_text(USER.replace("version: str", f"{more}version: str"))
    options = ["--strict", "--no-incremental", f"--python-executable={environment}/bin/python", "--config-file="]
    checked = run(tmp_path, sys.executable, "-m", "mypy", *options, user)
    (line,) = (number for number, text in enumerate(user.read_text().splitlines(), 1) if text.startswith("wrong"))
    expected = 'error: Incompatible types in assignment (expression has type "Selection", variable has type "int")'
    found = [text for text in checked.stdout.splitlines() if "error" in text]
    assert found == [f"user.py:{line}: {expected}  [assignment]", "Found 1 error in 1 file (checked 1 source file)"], (
        checked.stdout + checked.stderr
    )


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(wheel: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """With nothing but what the wheel itself requires, from the registry."""
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    install = [environment / "bin/python", "-m", "pip", "install", "--quiet", "-c", ROOT / "requirements.lock"]
    subprocess.run([*install, f"{wheel}[cpu]"], check=True)
    fine_tune(environment, tmp_path)
    assert not (tmp_path / "run/curves.png").exists(), "matplotlib is not a requirement"
