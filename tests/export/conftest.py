"""Tiny trained runs to export."""

from __future__ import annotations

import contextlib
import pathlib
import re
from collections.abc import Callable, Iterator

import pytest

from engine.export.run import export_savedmodel
from engine.recipes.config import FinetuneConfig
from engine.recipes.finetune import finetune
from engine.runs import picture, records


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory, small_data: pathlib.Path) -> Callable[..., pathlib.Path]:
    """Trains a model for two steps; returns the run directory."""

    def run(**fields: object) -> pathlib.Path:
        out = tmp_path_factory.mktemp("runs") / "run"
        given = {
            "model": "vit:mini,depth=1",
            "weights": "none",
            "train": "@head",
            "data": f"npz:{small_data}",
            "steps": 2,
            "batch_size": 16,
            "cache": "off",
            "deterministic": False,
        }
        assert finetune(FinetuneConfig(**given | fields | {"out": str(out)})).code == 0
        return out

    @contextlib.contextmanager
    def without_pictures() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(records, "draw_curves", lambda *_: None)
            patch.setattr(picture, "draw", lambda *_: None)
            yield

    def quickly(**fields: object) -> pathlib.Path:
        with without_pictures():
            return run(**fields)

    return quickly


@pytest.fixture(scope="session")
def vit_run(train: Callable[..., pathlib.Path]) -> pathlib.Path:
    return train()


@pytest.fixture(scope="session")
def exported(vit_run: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The SavedModel of ``vit_run``."""
    out = tmp_path_factory.mktemp("exports") / "exported"
    export_savedmodel(vit_run, out)
    return out


@pytest.fixture(scope="session")
def snippets() -> list[str]:
    """The Python snippets of docs/export.md: a server, a phone, a phone that takes a new head, texts."""
    page = pathlib.Path(__file__).resolve().parents[2] / "docs/export.md"
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
