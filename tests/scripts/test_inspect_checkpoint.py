"""inspect_checkpoint shows what a file holds, names what is damaged, and never ends in a traceback."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tensorflow as tf

from engine import files

ROOT = pathlib.Path(__file__).resolve().parents[2]
v1 = tf.compat.v1
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
Inspect = Callable[..., tuple[int, str, str]]


SERVER = """
import contextlib, io, json, sys
from absl import flags
from absl.testing import flagsaver
from scripts import inspect_checkpoint as program_itself, cli
for line in sys.stdin:
    sys.argv = ["inspect_checkpoint", *json.loads(line)]
    out, err = io.StringIO(), io.StringIO()
    with flagsaver.flagsaver(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        flags.FLAGS.unparse_flags()
        code = cli._run(program_itself.main, program_itself.__doc__, program_itself.__name__)
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def inspect() -> Iterator[Inspect]:
    """Runs the program: (exit code, stdout, stderr). In one process of its own, for its flags are global."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    asking, answering = server.stdin, server.stdout

    def run(*words: object) -> tuple[int, str, str]:
        print(json.dumps([str(word) for word in words]), file=asking, flush=True)
        code, out, err = json.loads(answering.readline())
        assert "Traceback" not in out + err
        return code, out, err

    yield run
    asking.close()
    server.wait(30)


@pytest.fixture
def prefix(tmp_path: pathlib.Path) -> pathlib.Path:
    """Two variables, one in parts, with Adam slots and averages after 3 steps, and a text."""
    with tf.Graph().as_default(), v1.Session() as session:
        table = v1.get_variable("emb/table", [10, 4], partitioner=v1.fixed_size_partitioner(3))
        kernel = v1.get_variable("head/kernel", [4, 2])
        loss = tf.reduce_sum((tf.convert_to_tensor(table) @ kernel) ** 2)
        step = v1.train.get_or_create_global_step()
        train = v1.train.AdamOptimizer(0.01).minimize(loss, global_step=step)
        average = tf.train.ExponentialMovingAverage(0.9).apply([kernel])
        words = v1.get_variable("words", initializer=tf.constant(["a", "b"]), trainable=False)
        session.run(v1.global_variables_initializer())
        for _ in range(3):
            session.run([train, average])
        named = {variable.op.name: variable for variable in v1.global_variables()}
        v1.train.Saver(named | {"words": words}).save(session, str(tmp_path / "m"))
    return tmp_path / "m"


def test_variables_slots_averages_parts_and_scalars_are_shown(prefix: pathlib.Path, inspect: Inspect) -> None:
    code, out, err = inspect(f"--source={prefix}", f"--out={prefix.parent / 'found.json'}")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["emb/table", "10x4", "float32", "160", "3", "parts", "(emb/table/part_0", "...;", "axis", "0)"] in lines
    assert ["head/kernel", "4x2", "float32", "32"] in lines
    assert ["average:", "ExponentialMovingAverage", "float32", "32"] in lines
    assert lines.count(["slots", "of", "Adam:", "m,", "v", "float32", "320"]) == 1
    assert lines.count(["slots", "of", "Adam:", "m,", "v", "float32", "64"]) == 1
    assert "beta1_power = 0.6561" in out
    assert "global_step = 3  (int64)" in out
    assert "2 variables of 48 elements, slots of Adam for 2, averages of 1; 10 tensors of 624 bytes" in out
    assert "3 tensors were merged from 9 parts" in out
    assert "skipped since not numeric: 1 (words)" in out
    assert "damage: none; every tensor was read" in out
    found = json.loads((prefix.parent / "found.json").read_text())
    assert [entry["name"] for entry in found["variables"]] == ["emb/table", "head/kernel"]
    assert found["variables"][1]["slots"] == {"Adam": {"m": "head/kernel/Adam", "v": "head/kernel/Adam_1"}}
    assert (found["damaged"], found["verified"], found["state"]["global_step"]) == ({}, True, ["global_step"])


def test_a_filter_shows_less_and_parts_can_stay_apart(prefix: pathlib.Path, inspect: Inspect) -> None:
    code, out, _ = inspect(f"--source={prefix}", "--filter=head/.*")
    assert code == 0
    assert "head/kernel" in out
    assert "emb/table" not in out
    assert "1 shown" in out
    code, out, _ = inspect(f"--source={prefix}", "--nomerge_parts")
    assert code == 0
    assert "emb/table/part_2 " in out
    assert "4 variables of 48 elements" in out


def test_each_damaged_tensor_is_named_and_the_exit_code_is_1(prefix: pathlib.Path, inspect: Inspect) -> None:
    data = prefix.parent / "m.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[40] ^= 64  # behind the two powers: in the first part of emb/table
    data.write_bytes(content)
    code, out, _ = inspect(f"--source={prefix}", f"--out={prefix.parent / 'found.json'}")
    assert code == 1
    ((tensor, reason),) = json.loads((prefix.parent / "found.json").read_text())["damaged"].items()
    assert tensor == "emb/table"
    assert "emb/table/part_0: damaged" in reason
    assert "Checksum does not match" in reason
    assert "damage: 1 of 10 tensors cannot be read\n    emb/table/part_0: damaged" in out
    assert "axis 0)  DAMAGED" in out
    data.unlink()
    code, out, _ = inspect(f"--source={prefix}")
    assert code == 1
    assert "damage: 10 of 10 tensors cannot be read" in out
    assert (
        "\n    m.data-00000-of-00001 is missing: 10 tensors cannot be read (beta1_power, beta2_power, emb/table and 7"
        in out
    )
    assert out.count("is missing") == 1
    assert "beta1_power = DAMAGED" in out
    assert out.count("DAMAGED: m, v") == 2
    for held, said in ((content[:60], "is truncated: it has 60 bytes"), (LFS, "is a Git LFS pointer, not the data")):
        data.write_bytes(held)
        code, out, _ = inspect(f"--source={prefix}")
        assert code == 1
        assert out.count(f"m.data-00000-of-00001 {said}") == 1
    data.unlink()
    code, out, _ = inspect(f"--source={prefix}", "--noverify")
    assert code == 0
    assert "damage: not checked (--noverify)" in out
    assert "beta1_power = cannot be read" in out


def test_what_is_there_but_cannot_be_opened_is_damage(prefix: pathlib.Path, inspect: Inspect) -> None:
    index = prefix.parent / "m.index"
    content = index.read_bytes()
    for damage in (content[:100], b"version https://git-lfs.github.com/spec/v1\n", content[:50] + b"X" + content[51:]):
        index.write_bytes(damage)
        code, out, err = inspect(f"--source={prefix}", f"--out={prefix.parent / 'found.json'}")
        assert (code, out) == (1, "")
        assert err.startswith(f"inspect_checkpoint: {prefix}")
        assert not (prefix.parent / "found.json").exists()
    (prefix.parent / "w.npz").write_bytes(b"PK\x03\x04 and no more")
    assert inspect(f"--source={prefix.parent / 'w.npz'}")[0] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "source=None: expected --source=PATH, the weights file"),
        (("--source=absent/m",), "there is no such file"),
        (("--source=README.md",), "not a weights file of a supported kind"),
        (
            ("--source=engine/models/weights/vit_mini_fashion5.npz", "--filter=("),
            "filter='(' is not a valid regular expression",
        ),
        (
            ("--source=engine/models/weights/vit_mini_fashion5.npz", "--filter=conv"),
            "filter='conv' matches none of the 102 variables",
        ),
        (
            ("--source=engine/models/weights/vit_mini_fashion5.npz", "--out=absent/x.json"),
            "expected the name of a file in an existing, writable folder",
        ),
        (("--source=engine",), "the folder holds neither a checkpoint"),
        (("--source=/dev/zero",), "it is a device; expected a regular file"),
        (("--source=engine", "--filter=a{99999999999}"), "is not a valid regular expression"),
        (("--source=engine", f"--filter={'(' * 3000}{')' * 3000}"), "6,000 characters; the limit is 4,096"),
        (
            ("--source=engine/models/weights/vit_mini_fashion5.npz", "--filter=(.+)+!"),
            "filter='(.+)+!': it takes longer than 1 s to match",
        ),
        (("--source=engine", "--memory_limit=lots"), "memory_limit='lots': expected a number and a unit"),
        (("--flagfile=/dev/zero",), "it is a device; expected a regular file"),
        (("engine",), "unexpected argument 'engine'; expected only --flags"),
    ],
)
def test_bad_input_is_told_with_exit_code_2(inspect: Inspect, words: tuple[str, ...], said: str) -> None:
    code, _, err = inspect(*words)
    assert code == 2
    assert said in err


def test_a_file_of_our_own_shows_its_slots(tmp_path: pathlib.Path, inspect: Inspect) -> None:
    arrays = {"w": np.ones((2, 3), np.float32), "optimizer/w/m": np.ones((2, 3), np.float32)}
    arrays |= {"optimizer/w/v": np.ones((2, 3), np.float32), "optimizer/w/t": np.array(7)}
    files.write_npz(tmp_path / "w.npz", [*arrays.items(), ("ema/w", arrays["w"])])
    code, out, _ = inspect(f"--source={tmp_path / 'w.npz'}")
    assert code == 0
    assert "1 variables of 6 elements, slots of Adam for 1, averages of 1; 5 tensors" in out


def real_cases() -> list[tuple[str, int, str]]:
    """What each real checkpoint must show; worked out from its README, names and file size."""
    return [
        ("mtcnn_PNet_landmark", 0, "slots of Momentum for 15; 31 tensors of 55,700 bytes"),
        ("made_v1format_pnet/pnet.ckpt", 0, "slots of Momentum for 15; 31 tensors of 55,700 bytes"),
        ("musicnn_MTT_vgg/", 0, "36 variables"),
        ("musicnn_MTT_vgg/checkpoint", 0, "slots of Adam for 24; 86 tensors of 7,274,112 bytes"),
        ("t2t_transformer", 0, "slots of Adam for 81; 250 tensors of 1,670,432 bytes"),
        ("serving_half_plus_two_v1format", 0, "2 variables of 2 elements"),
        ("tf2onnx_regression", 0, "2 variables of 2 elements"),
        ("made_ema_bn_momentum", 0, "slots of Momentum for 8, averages of 12; 33 tensors of 18,404 bytes"),
        ("made_partitioned_adam/sliced.ckpt-3", 0, "3 slices"),
        ("made_partitioned_adam/part_keys.ckpt-3", 0, "3 tensors were merged from 9 parts"),
        ("bleurt_index_only", 1, "damage: 42 of 42 tensors cannot be read"),
        ("made_corrupt/data_bitflip", 1, "damage: 1 of 31 tensors cannot be read\n    conv3/weights: damaged"),
        ("made_corrupt/data_truncated", 1, "damage: 14 of 31 tensors cannot be read"),
        ("made_corrupt/data_missing", 1, "damage: 31 of 31 tensors cannot be read"),
        ("made_corrupt/index_bitflip", 1, "the index is damaged"),
        ("made_corrupt/index_truncated", 1, "a truncated one: its end is missing"),
        ("made_corrupt/lfs_pointer", 1, "a Git LFS pointer"),
    ]


@pytest.mark.parametrize(("name", "code", "said"), real_cases(), ids=[name for name, _, _ in real_cases()])
def test_every_real_checkpoint_is_shown_rightly(inspect: Inspect, name: str, code: int, said: str) -> None:
    real = pathlib.Path(os.environ.get("FROSTLINE_SHARED", ROOT.parent / "shared")) / "tf1_checkpoints"
    if not real.is_dir():
        pytest.skip("the real checkpoints (tf1_checkpoints) are neither in $FROSTLINE_SHARED nor in ../shared")
    before = {file: file.stat().st_mtime_ns for file in real.rglob("*")}
    got, out, err = inspect(f"--source={real}/{name}")
    assert got == code
    assert said in out + err
    assert before == {file: file.stat().st_mtime_ns for file in real.rglob("*")}
