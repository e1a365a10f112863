"""plan_scaling as its user runs it: counted bytes, the formula, what is written, and bad flags in words."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import pytest

from engine.training.communication import SCALARS

MINI = ["--model=vit:mini,depth=3", "--classes=10", "--image_size=8"]
ONE = [*MINI, "--strategies=head", "--compute=0.5"]
SCALAR_BYTES = 8 * SCALARS
WORKERS = [1, 3, 8, 1024]
HEAD = 97 * 10
BLOCK = 4 * 97 * 96 + 2 * 4 * 96 * 96 + 4 * 96 + 96 + 4 * 96  # attention, MLP, norms
FULL = 3 * BLOCK + 49 * 96 + 96 + 5 * 96 + 2 * 96 + HEAD  # blocks, patches of grey images have 48 pixels in colour


def file_of(folder: pathlib.Path, name: str, content: Any) -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def bad(folder: pathlib.Path) -> list[tuple[list[str], str]]:
    row = {"model": "vit:mini,depth=3", "strategy": "head", "seconds_per_example": 0.5}
    files: list[tuple[Any, str]] = [
        ("[", "the file is not valid JSON"),
        ({"rows": []}, "expected a list of objects, or an object with such a list as `compute`"),
        ([], "it has 0 entries for vit:mini,depth=3 head; expected one; it has nothing"),
        ([row, row], "it has 2 entries for vit:mini,depth=3 head"),
        ([row | {"strategy": "heda"}], "expected one; it has vit:mini,depth=3 heda"),
        ([row | {"seconds_per_example": 0}], "entry 1: seconds_per_example=0.0: expected a number above 0"),
        ([row | {"seconds_per_example": float("nan")}], "entry 1: seconds_per_example=nan: expected a number above 0"),
        ([row | {"seconds_per_example": 10**400}], "entry 1: int too large to convert to float"),
        ([row | {"measured": {"x": float("inf")}}], "entry 1: Out of range float values are not JSON compliant"),
        ([row | {"seconds_per_step": True}], "entry 1: seconds_per_step=True: expected a number"),
        ([row | {"model": 1}], "entry 1: model=1: expected a text"),
        ([row | {"image_size": [224, 224]}], "was measured with image_size=[224, 224], but here it is [8, 8]"),
        (
            [row | {"precision": "mixed_bfloat16"}],
            "was measured with precision='mixed_bfloat16', but here it is 'float32'",
        ),
        ([row | {"train": "@all"}], "was measured with train='@all', but here it is '@head'"),
    ]
    head = [*MINI, "--strategies=head"]
    cases = [([*head, f"--compute={file_of(folder, f'{n}.json', text)}"], said) for n, (text, said) in enumerate(files)]
    return [
        *cases,
        (head, "measure, compute: expected one of them"),
        ([*ONE, "--measure"], "measure, compute: expected one of them"),
        ([*MINI, "--compute=0.5"], "a number is the time of one model and one strategy, but there are 3"),
        ([*head, "--compute=0"], "compute=0.0: expected a number above 0"),
        ([*head, "--compute=nan"], "compute=nan: expected a number above 0"),
        ([*head, "--compute=fast"], "compute='fast': it is neither a number of seconds nor a file that exists"),
        ([*head, f"--compute={folder}"], "it is a folder; expected a regular file"),
        ([*ONE, "--bandwidths=10GB/s"], "bandwidths='10GB/s': expected bits; that is 80Gbit"),
        ([*ONE, "--bandwidths=10"], "bandwidths='10': expected bits, such as 1Gbit"),
        ([*ONE, "--bandwidths="], "bandwidths='': expected at least one"),
        ([*ONE, "--bandwidths=1Gbit,1Gbit"], "bandwidths='1Gbit,1Gbit': expected at least one, and none twice"),
        ([*ONE, "--workers=1,0"], "workers='0': expected whole numbers from 1 to 1000000"),
        ([*ONE, "--workers=2.5"], "workers='2.5': expected whole numbers"),
        ([*ONE, "--workers=4,4"], "workers='4,4': expected at least one, and none twice"),
        ([*ONE, "--latency=-1"], "latency=-1.0: expected a number from 0 to 60"),
        ([*ONE, "--latency=nan"], "latency=nan: expected a number from 0 to 60"),
        ([*ONE, "--batch_size=0"], "batch_size=0: expected a number from 1 to 1000000000"),
        ([*ONE, "--worker_batch_size=0"], "worker_batch_size=0: expected a number from 1"),
        ([*ONE, "--measure_examples=5"], "measure_examples=5: expected an even number"),
        ([*ONE, "--micro_batch_size=3"], "half of which is a multiple of micro_batch_size=3"),
        ([*ONE, "--strategies=last_9"], "this model has no such parts; it has last_1 to last_3"),
        ([*ONE, "--strategies=haed"], "strategies='haed' is not a strategy of this model"),
        ([*ONE, "--strategies=gradual"], "strategies='gradual': it trains several selections in turn"),
        ([*ONE, "--precision=float31"], "float31"),
        ([*ONE, "--image_size=many"], "image_size='many': expected N or HEIGHTxWIDTH"),
        ([*ONE, "--model=vit:huge"], "vit:huge"),
        ([*ONE, "--all_reduce=star"], "all_reduce"),
        ([*ONE, f"--out={file_of(folder, 'file', '')}"], "expected a folder"),
    ]


def test_bytes_are_counted_steps_follow_the_formula_and_bad_flags_are_named(
    run_each: Any, tmp_path: pathlib.Path
) -> None:
    out, measured, again, cases = tmp_path / "plan", tmp_path / "measured", tmp_path / "again", bad(tmp_path)
    compute = {"full": (0.5, 0.2), "last_2": (0.25, 0.1), "head": (0.125, 0.0)}
    keys = ("seconds_per_example", "seconds_per_step")
    strange: list[Any] = [[1], {"device": 3, "taken_by_others": "x"}, {"device": {"description": None}}]
    given = [
        {"model": "vit:mini,depth=3", "strategy": name, "measured": more} | dict(zip(keys, numbers, strict=True))
        for (name, numbers), more in zip(compute.items(), strange, strict=True)
    ]
    flags = ["--batch_size=100", "--worker_batch_size=4", f"--workers={','.join(map(str, WORKERS))}", "--latency=1e-4"]
    planned = [*MINI, f"--compute={file_of(tmp_path, 'given.json', given)}", f"--out={out}", *flags]
    small = ["--model=vit:mini,depth=1", *MINI[1:], "--strategies=head,biases=@bias", "--bandwidths=1Gbit"]
    measure = [
        "--measure",
        "--measure_examples=4",
        "--micro_batch_size=1",
        "--rounds=1",
        "--clock=cpu",
        f"--out={measured}",
    ]
    repeat = [f"--compute={measured}/scaling.json", f"--out={again}", "--all_reduce=tree"]
    wide = [*MINI, "--strategies=head", "--compute=0.01", "--precision=float64"]
    done = run_each(
        "scripts.plan_scaling",
        [planned, [*small, *measure], [*small, *repeat], wide, *(words for words, _ in cases)],
    )
    for (words, said), (code, _, error) in zip(cases, done[4:], strict=True):
        assert (code, said in error) == (2, True), (words, error)
    assert [code for code, _, _ in done[:4]] == [0] * 4, [error for _, _, error in done[:4]]

    found = json.loads((out / "scaling.json").read_text())
    assert (found["format"], found["finished"]) == (1, True)
    trained = {case["strategy"]: case["trained_parameters"] for case in found["compute"]}
    assert trained == {"full": FULL, "last_2": 2 * BLOCK + HEAD, "head": HEAD}
    for case in found["compute"]:
        assert case["bytes_per_step"] == 4 * case["trained_parameters"] + SCALAR_BYTES
        assert case["collectives"] == 2
        assert f"{case['bytes_per_step']:,}" in done[0][1]
    assert f"{8 * HEAD + SCALAR_BYTES:,}" in done[3][1]  # gradients of float64
    assert len(found["rows"]) == 3 * 3 * 2 * len(WORKERS)
    bandwidths = {"1Gbit": 125e6, "10Gbit": 1.25e9, "100Gbit": 12.5e9}
    for row in found["rows"]:
        (example, step), count = compute[row["strategy"]], row["workers"]
        assert row["examples"] == (100 if row["scaling"] == "strong" else 4 * count)
        size = 4 * trained[row["strategy"]] + SCALAR_BYTES
        ring = 2 * (count - 1) / count * size / bandwidths[row["bandwidth"]] + 2 * 2 * (count - 1) * 1e-4
        assert row["seconds"] == pytest.approx(step + -(-row["examples"] // count) * example + ring)
        assert row["efficiency"] == pytest.approx(row["speedup"] / count)
    assert (out / "scaling.png").read_bytes().startswith(b"\x89PNG")

    one, other = (json.loads((folder / "scaling.json").read_text()) for folder in (measured, again))
    assert [case["strategy"] for case in one["compute"]] == ["head", "biases"]
    for before, after in zip(one["compute"], other["compute"], strict=True):
        assert (before["seconds_per_example"] > 0, before["seconds_per_step"] >= 0) == (True, True)
        assert set(before["measured"]["step_seconds"]) == {"2", "4"}
        assert before["measured"]["clock"] == "cpu"
        assert [after[key] for key in (*keys, "measured")] == [before[key] for key in (*keys, "measured")]
    for ring_row, tree_row in zip(one["rows"], other["rows"], strict=True):  # fewer messages than in a ring
        assert (tree_row["seconds"] < ring_row["seconds"]) == (ring_row["workers"] > 3)
    assert "vit:mini,depth=1 at 8x8 px" in done[2][1]
    assert "scaling.json; measured on " in done[2][1]
    assert ", CPU seconds over cores" in done[2][1]


@pytest.mark.slow
def test_the_tables_of_the_page_are_those_that_its_commands_print(run_each: Any) -> None:
    docs = pathlib.Path(__file__).resolve().parents[2] / "docs"
    page = (docs / "distribution.md").read_text(encoding="utf-8")
    commands = re.findall(r"    frostline plan-scaling --compute=docs/(\S+)(.*)\n", page)
    files = {name for name, _ in commands}
    assert files == {file.name for file in docs.glob("compute_*.json")}
    done = run_each("scripts.plan_scaling", [[f"--compute={docs / name}", *more.split()] for name, more in commands])
    printed = {line for _, out, _ in done for line in out.splitlines()}
    rows = [line[4:] for line in page.splitlines() if re.match(r"    (strategy|full|last_2|head)  ", line)]
    assert len(rows) == len(files) * 2 * (1 + 3 * 3)
    assert [row for row in rows if row not in printed] == []
