"""The wheel: built from the project, installed in an empty environment, used from another folder."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import sysconfig
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Built from a copy of what git tracks, so that no left-over of a build gets in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
    )
    for name in filter(None, files.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(out),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("frostline-*.whl")
    return built


def test_the_wheel_holds_weights_data_and_licences_but_no_tests(wheel: pathlib.Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "engine/data/fashion_mnist_mini.npz" in names
    assert "engine/data/fashion_mnist_mini.LICENSE" in names
    assert "engine/models/weights/vit_mini_fashion5.npz" in names
    assert {"engine/study/html/page.css", "engine/study/html/page.js"} <= set(names)
    assert "scripts/finetune.py" in names
    assert not [name for name in names if name.startswith("tests")]
    modules = {str(p.relative_to(ROOT)) for room in ("engine", "scripts") for p in (ROOT / room).rglob("*.py")}
    assert modules <= set(names), "a package is missing in pyproject.toml"
    weights = zipfile.ZipFile(wheel).getinfo("engine/models/weights/vit_mini_fashion5.npz")
    assert weights.file_size <= 3_000_000


def fine_tune(environment: pathlib.Path, folder: pathlib.Path) -> None:
    """Runs the installed program from another folder and checks that the installed package did it."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    program = environment / "bin/frostline-finetune"
    done = subprocess.run(
        [program, "--train=@head", "--steps=4", "--train_examples=128", "--batch_size=32", "--out=run"],
        cwd=folder, env=clean, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "weights: vit_mini_fashion5.npz, 102 variables loaded" in done.stdout
    run = json.loads((folder / "run/run.json").read_text())
    assert run["freeze_proof"]["verified"] is True
    where = subprocess.run(
        [environment / "bin/python", "-c", "from importlib.util import find_spec; print(find_spec('engine').origin)"], cwd=folder, env=clean, capture_output=True, text=True, check=True
    )  # fmt: skip
    assert str(environment) in where.stdout


def test_the_wheel_works_from_another_folder(wheel: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """In a new environment that has this one's libraries, but not this checkout."""
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin/python"
    query = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = pathlib.Path(subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip())
    (site / "libraries.pth").write_text(
        sysconfig.get_path("purelib") + "\n"
    )  # paths in it are added, its .pth files not
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--force-reinstall", str(wheel)], check=True)
    fine_tune(environment, tmp_path)


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(wheel: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """With nothing but what the wheel itself asks for, from the registry."""
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    install = [environment / "bin/python", "-m", "pip", "install", "--quiet", "-c", ROOT / "requirements.lock"]
    subprocess.run([*install, f"{wheel}[cpu]"], check=True)
    fine_tune(environment, tmp_path)
    assert not (tmp_path / "run/curves.png").exists(), "matplotlib was not asked for"
