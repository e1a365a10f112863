"""Jobs in processes of their own: results come back, and so does whatever goes wrong."""

from __future__ import annotations

import pathlib

import pytest

from engine.study import child, registry


def test_a_result_comes_back_from_a_new_process_without_tensorflow() -> None:
    assert child.run_job("math:sqrt", 9.0, tensorflow=False) == 3.0
    assert child.run_job("builtins:sorted", [3, 1, 2], tensorflow=False) == [1, 2, 3]
    with pytest.raises(child.ChildError, match=r"^ValueError: (math domain error|expected a nonnegative)"):
        child.run_job("math:sqrt", -1.0, tensorflow=False)
    with pytest.raises(child.ChildError, match=r"^exit code 7$"):
        child.run_job("os:_exit", 7, tensorflow=False)


def test_bad_input_is_told_apart_from_failure(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tmp_path / "result.json"
    assert child.perform("engine.study.registry:runner_target", "engine", result) == child.DONE
    assert result.read_text() == '"engine.study.runners:EngineRunner"'
    assert child.perform("engine.study.registry:runner_target", "enigne", result) == child.BAD_INPUT
    said = capsys.readouterr().err
    assert (
        said
        == "runners='enigne' is not a known runner; expected engine, engine_cached; nearest: engine, engine_cached\n"
    )
    with pytest.raises(child.ChildError) as raised:
        child.check_exit(child.BAD_INPUT, said)
    assert raised.value.bad_input
    assert str(raised.value) == said.strip()
    assert child.perform("no_such_module:name", None, result) == child.FAILED
    with pytest.raises(
        child.ChildError, match=r"^killed by SIGKILL, perhaps because the system ran out of memory; .* \(last words\)$"
    ):
        child.check_exit(-9, "last words\n")
    said = "F0000 00:00:1.5 7 tensor_shape.cc:362] Check failed: d < dims() (1 vs. 1) \n*** Check failure stack trace: ***\n @ 0x7f"
    with pytest.raises(child.ChildError, match=r"^killed by SIGABRT \(Check failed: d < dims\(\) \(1 vs. 1\)\)$"):
        child.check_exit(-6, said)
    with pytest.raises(OSError, match="No space left on device"):
        child.check_exit(1, "OSError: [Errno 28] No space left on device\n")
    child.check_exit(0, "a warning")


def test_runners_are_registered_by_name_and_loaded_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_targets", dict(registry._targets))
    registry.register_runner("mine", "no_such_module:Runner")
    assert registry.runner_names() == ("engine", "engine_cached", "mine")
    assert registry.runner_modules() == ["engine.study.runners", "no_such_module"]
    with pytest.raises(ModuleNotFoundError):
        registry.load_runner(registry.runner_target("mine"))


def test_a_process_that_asks_for_more_than_its_memory_is_told() -> None:
    assert child.run_job("operator:not_", 0, tensorflow=False, memory=1 << 20) is True
    with pytest.raises(child.ChildError, match="out of memory"):
        child.run_job("builtins:bytearray", 4 << 30, tensorflow=False, memory=1 << 20)
