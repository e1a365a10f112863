"""The data of the tests of quality mode."""

from __future__ import annotations

import pathlib

import pytest
from small_studies import write_data


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_data(tmp_path_factory.mktemp("data") / "small.npz")
