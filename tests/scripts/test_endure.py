"""The endurance campaign: it passes on what is here, goes on where it was, and fails on what it must find."""

from __future__ import annotations

import json
import pathlib
from collections import Counter
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def campaign(programs: Any, *words: str, code: int = 0, seconds: int = 1200) -> str:
    done = programs.run(["-m", "scripts.endure", *words], seconds=seconds)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert done.returncode == code, done.stdout + done.stderr
    return str(done.stdout + done.stderr)


def test_damaged_files_of_all_formats_do_no_harm(programs: Any, tmp_path: pathlib.Path) -> None:
    said = campaign(programs, "--kinds=files", "--cases=108", f"--out={tmp_path}")
    assert "108 cases, 0 failed" in said
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines() if line]
    groups = Counter(row["group"] for row in rows)
    assert len(groups) >= 27  # each format that is read
    assert {row["outcome"] for row in rows} <= {"clean error", "same values", "other values"}
    assert Counter(row["outcome"] for row in rows)["clean error"] > 54  # the damage is damage


@pytest.mark.slow
def test_two_thousand_damaged_files_do_no_harm(programs: Any) -> None:
    assert "2,000 cases, 0 failed" in campaign(programs, "--kinds=files", "--cases=2000", "--seed=5")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "cases"), [("kills", 24), ("disk", 12), ("graphs", 26), ("locks", 4)])
def test_a_small_campaign_of_each_kind_does_no_harm(programs: Any, kind: str, cases: int) -> None:
    assert f"{cases} cases, 0 failed" in campaign(programs, f"--kinds={kind}", f"--cases={cases}", seconds=3000)


PLANTED = """
import json, os, pathlib, random, sys, time
import numpy as np
from engine.errors import InputError
from engine.host import import_tensorflow
from scripts.endurance import campaign, damage, outcomes, pool
from scripts.endurance.files import Files
from scripts.endurance.formats import Format

import_tensorflow(start=False)
folder = pathlib.Path(sys.argv[1])

def write(place):
    (place / "file").write_bytes(bytes(range(64)))

def reader(fault):
    def read(place):
        content = (place / "file").read_bytes()
        if content != bytes(range(64)):
            if fault:
                return fault(content)
            raise InputError("damaged")
        return outcomes.sums([("one", content[:32]), ("two", content[32:])])
    return read

def forget(content):
    raise ZeroDivisionError("a fault")

def fill(content):
    kept = np.ones(1 << 26)
    time.sleep(60)
    return kept

FAULTS = {
    "sound": None,
    "wrong": lambda content: outcomes.sums([("one", content[:32]), ("two", b"")]),
    "missing": lambda content: outcomes.sums([("one", content[:32])]),
    "traceback": forget,
    "hang": lambda content: time.sleep(60),
    "abort": lambda content: os.abort(),
    "memory": fill,
    "exit": lambda content: os._exit(0),
}
formats = {name: Format(name, True, write, reader(fault)) for name, fault in FAULTS.items()}
open_format = Format("open", False, write, reader(FAULTS["wrong"]))
kind = Files(folder, formats=formats | {"open": open_format})
cases = kind.list_cases(18, 4)
limits = pool.Limits(seconds=4.0, bytes=300 << 20)
said = []
half = campaign.run_campaign([("files", kind, cases[:9])], folder, say=said.append, limits=limits)
with open(folder / "results.jsonl", "a") as file:
    file.write('{"kind": "files", "gro')  # a campaign that was killed
kind = Files(folder, formats=formats | {"open": open_format})
found = campaign.run_campaign([("files", kind, cases)], folder, say=said.append, limits=limits)
print(json.dumps([[r.to_json() | {"failed": r.failed} for r in found], said, campaign.summarise(found)]))
"""


@pytest.mark.slow
def test_each_planted_fault_is_found_and_a_stopped_campaign_goes_on(programs: Any, tmp_path: pathlib.Path) -> None:
    done = programs.run(["-c", PLANTED, str(tmp_path)])
    assert done.returncode == 0, done.stderr
    rows, said, table = json.loads(done.stdout)
    outcomes = {row["group"]: row["outcome"] for row in rows}
    assert outcomes == {
        "sound": "clean error",
        "wrong": "wrong values",
        "missing": "missing entries",
        "traceback": "traceback",
        "hang": "hang",
        "abort": "abort",
        "memory": "over memory",
        "exit": "abort",
        "open": "other values",  # without checksums
    }
    assert [row["failed"] for row in rows] == [row["group"] not in ("sound", "open") for row in rows]
    assert len(rows) == 18  # those after a child that died were done, too
    assert "files: 18 cases, 9 done before" in said
    assert "python -m scripts.endure --kinds=files --only=hang:4:0" in "".join(said)
    assert "SIGABRT" in "".join(said)
    assert "14 failed" in table.splitlines()[-1]


def test_a_campaign_with_a_failure_exits_with_1_and_one_case_can_be_repeated(
    programs: Any, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "results.jsonl").write_text(
        json.dumps({"kind": "files", "group": "idx", "name": "idx:0:0", "outcome": "hang", "detail": "20 s"}) + "\n"
    )
    said = campaign(programs, "--kinds=files", "--only=idx:0:0", f"--out={tmp_path}", code=1)
    assert "1 cases, 1 failed" in said


@pytest.mark.parametrize(
    "words",
    [["--kinds=fils"], ["--cases=0"], ["--only=npz"], ["--kinds=files,long", "--only=npz:0:0"], ["--out=/dev/null/x"]],
)
def test_bad_flags_are_refused(programs: Any, words: list[str]) -> None:
    assert "expected" in campaign(programs, *words, code=2)


def test_beside_files_the_other_kinds_do_a_share() -> None:
    from scripts.endurance.campaign import KINDS, count_cases

    assert {kind: count_cases(KINDS, kind, 20_000) for kind in KINDS} == {
        "files": 20_000,
        "kills": 150,
        "disk": 150,
        "graphs": 100,
        "locks": 8,
        "long": 100,
    }
    assert count_cases(["kills", "disk"], "kills", 24) == 24


def test_the_same_seed_makes_the_same_damage() -> None:
    import random

    from scripts.endurance import damage

    content = random.Random(0).randbytes(3000)
    for kind in dict.fromkeys(damage.GENERIC):
        one, other = (kind(content, random.Random(f"npz:1:{n}")) for n in (2, 2))
        assert one == other, kind
        for short in (b"", b"a", b"ab"):
            kind(short, random.Random(1))


def test_an_index_that_is_written_again_is_valid_with_other_values() -> None:
    """The forged checksums are right: TensorFlow itself takes them."""
    import random

    from scripts.endurance import aware

    entries = [(b"", b"\x08\x01\x1a\x02\x08\x01"), (b"a", b"\x08\x01"), (b"ab", b"\x08\x03")]
    content = aware._write_table(entries)
    assert list(aware._read_table(content)) == entries
    assert aware._masked_crc(b"123456789") == (((0xE3069283 >> 15) | (0xE3069283 << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    assert aware.edit_index(content, random.Random(2)) != content


@pytest.mark.slow
def test_a_selection_for_each_call_leaves_a_step_of_constant_size() -> None:
    from scripts.endurance.long import Long
    from scripts.endurance.outcomes import Case

    kind = Long()
    count, act, live, _ = kind._selections(6)
    for number in range(count):
        act(number)
    assert live() <= 8  # two traces for each selection that is kept
    assert Case("long", "steps", 0, 100).repro.endswith("--kinds=long --only=steps:0:100")
