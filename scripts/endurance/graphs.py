"""The kind "graphs": graphs that would write, hang, exhaust memory or end the process. Each is refused, or stopped in time."""

from __future__ import annotations

import os
import pathlib
import random
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np

from engine import host
from engine.errors import InputError

from . import outcomes, pool
from .outcomes import Case, Result, conclude

_SECONDS, _BYTES = 5.0, 1 << 30  # that an old graph gets


class Graphs:
    """Hostile graphs as frozen ``.pb`` files; each is extracted and run as ``port-checkpoint --verify_graph`` does."""

    limits = pool.Limits(seconds=90.0)
    each = 1  # a graph that is stopped may leave threads that still run

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder.resolve()

    def list_cases(self, count: int, seed: int) -> list[Case]:
        names = list(HOSTILE)
        return [Case("graphs", names[number % len(names)], seed, number // len(names)) for number in range(count)]

    def prepare(self) -> None:
        from engine.files import write_npz

        write_npz(self.folder / "weights.npz", [("unused", np.zeros(1, np.float32))])

    def perform(self, case: Case) -> Result:
        os.environ[host.LIMIT] = str(_BYTES)  # as --memory_limit does
        from google.protobuf import text_format  # type: ignore[import-untyped]

        place = self.folder / case.name.replace(":", "-")
        shutil.rmtree(place, ignore_errors=True)
        (place / "written").mkdir(parents=True)
        try:
            text = HOSTILE[case.group](random.Random(f"{case.group}:{case.seed}:{case.index}"), place / "written")
            import tensorflow as tf

            definition = text_format.Parse(_INPUT + text, tf.compat.v1.GraphDef())
            (place / "graph.pb").write_bytes(definition.SerializeToString())
            outcome, detail = self._run(case.group, place / "graph.pb")
            if written := sorted(path.name for path in (place / "written").iterdir()):
                outcome, detail = outcomes.ACCEPTED, f"it wrote {written}"
            return conclude(case, outcome, detail)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _run(self, group: str, graph: pathlib.Path) -> tuple[str, str]:
        from compat_v1.graphs.metagraph import read_metagraph
        from compat_v1.porting import apart

        job = apart.Job(str(self.folder / "weights.npz"), str(graph), (), "x", ("y",), time_limit=_SECONDS)
        try:
            extracted = job.extract(read_metagraph(graph))
        except InputError as error:
            return outcomes.REFUSED, str(error)
        try:
            found = apart.Apart(job, extracted)({"x:0": np.ones(2, np.float32)})
        except InputError as error:
            return outcomes.STOPPED, str(error)
        return outcomes.ACCEPTED, f"it ran and returned {[str(a)[:40] for a in found.values()]}"


_INPUT = 'node { name: "x" op: "Placeholder" attr { key: "dtype" value { type: DT_FLOAT } } }\n'


def _node(name: str, op: str, inputs: str = "", **attributes: str) -> str:
    reads = "".join(f' input: "{each}"' for each in inputs.split())
    sets = "".join(f' attr {{ key: "{key}" value {{ {value} }} }}' for key, value in attributes.items())
    return f'node {{ name: "{name}" op: "{op}"{reads}{sets} }}\n'


_FLOAT, _INT, _STRING = "type: DT_FLOAT", "type: DT_INT32", "type: DT_STRING"


def _text(name: str, text: str) -> str:
    return _node(
        name, "Const", dtype=_STRING, value=f'tensor {{ dtype: DT_STRING tensor_shape {{ }} string_val: "{text}" }}'
    )


def _int(name: str, *values: int) -> str:
    shape = f"dim {{ size: {len(values)} }}" if len(values) > 1 else ""
    numbers = " ".join(f"int_val: {value}" for value in values)
    return _node(name, "Const", dtype=_INT, value=f"tensor {{ dtype: DT_INT32 tensor_shape {{ {shape} }} {numbers} }}")


_FILL_Y = _node("y", "Fill", "shape one", T=_FLOAT, index_type=_INT)
_ONE = _node("one", "Const", dtype=_FLOAT, value="tensor { dtype: DT_FLOAT tensor_shape { } float_val: 1 }")


def _write_file(rng: random.Random, folder: pathlib.Path) -> str:
    op = rng.choice(["WriteFile", "SaveV2", "PrintV2"])
    body = _text("name", f"{folder}/planted") + _text("what", "planted")
    if op == "PrintV2":
        return (
            body
            + _node("p", "PrintV2", "what", output_stream=f's: "file://{folder}/planted"')
            + _node("y", "Identity", "x ^p", T=_FLOAT)
        )
    if op == "SaveV2":
        one = 'tensor { dtype: DT_STRING tensor_shape { dim { size: 1 } } string_val: "a" }'
        body += _node("names", "Const", dtype=_STRING, value=one)
        body += _node("p", "SaveV2", "name names names x", dtypes="list { type: DT_FLOAT }")
        return body + _node("y", "Identity", "x ^p", T=_FLOAT)
    return body + _node("p", "WriteFile", "name what") + _node("y", "Identity", "x ^p", T=_FLOAT)


def _read_file(rng: random.Random, folder: pathlib.Path) -> str:
    body = _text("name", "/etc/hostname") + _node("f", rng.choice(["ReadFile", "MatchingFiles"]), "name")
    return body + _node("y", "Identity", "x ^f", T=_FLOAT)


def _python(rng: random.Random, folder: pathlib.Path) -> str:
    op = rng.choice(["PyFunc", "PyFuncStateless", "EagerPyFunc"])
    return _node("y", op, "x", token='s: "pyfunc_0"', Tin="list { type: DT_FLOAT }", Tout="list { type: DT_FLOAT }")


def _abort(rng: random.Random, folder: pathlib.Path) -> str:
    return _node("a", "Abort", error_msg='s: "ended"') + _node("y", "Identity", "x ^a", T=_FLOAT)


def _unregistered(rng: random.Random, folder: pathlib.Path) -> str:
    return _node("y", f"NoSuchOp{rng.randrange(1000)}", "x", T=_FLOAT)


def _endless_loop(rng: random.Random, folder: pathlib.Path) -> str:
    """A loop of TensorFlow 1 whose condition is always true."""
    frame = {"frame_name": 's: "f"'}
    return (
        _node("t", "Const", dtype="type: DT_BOOL", value="tensor { dtype: DT_BOOL tensor_shape { } bool_val: true }")
        + _node("e", "Enter", "x", T=_FLOAT, **frame)
        + _node("m", "Merge", "e n", T=_FLOAT, N="i: 2")
        + _node("tt", "Enter", "t", T="type: DT_BOOL", is_constant="b: true", **frame)
        + _node("c", "LoopCond", "tt")
        + _node("s", "Switch", "m c", T=_FLOAT)
        + _node("b", "Identity", "s:1", T=_FLOAT)
        + _node("n", "NextIteration", "b", T=_FLOAT)
        + _node("y", "Exit", "s", T=_FLOAT)
    )


def _endless_while(rng: random.Random, folder: pathlib.Path) -> str:
    """A functional loop whose condition is always true."""
    kind = rng.choice(["While", "StatelessWhile"])
    body = _node(
        "y", kind, "x", T="list { type: DT_FLOAT }", cond='func { name: "cond" }', body='func { name: "body" }'
    )
    true = 'node_def { name: "t" op: "Const" attr { key: "dtype" value { type: DT_BOOL } } attr { key: "value" value { tensor { dtype: DT_BOOL tensor_shape { } bool_val: true } } } }'
    cond = 'function { signature { name: "cond" input_arg { name: "a" type: DT_FLOAT } output_arg { name: "r" type: DT_BOOL } }'
    same = 'function { signature { name: "body" input_arg { name: "a" type: DT_FLOAT } output_arg { name: "r" type: DT_FLOAT } }'
    step = 'node_def { name: "i" op: "Identity" input: "a" attr { key: "T" value { type: DT_FLOAT } } }'
    return (
        body
        + f'library {{ {cond} {true} ret {{ key: "r" value: "t:output:0" }} }}\n'
        + f'{same} {step} ret {{ key: "r" value: "i:output:0" }} }} }}\n'
    )


def _cyclic_functions(rng: random.Random, folder: pathlib.Path) -> str:
    def function(name: str, other: str) -> str:
        call = f'node_def {{ name: "c" op: "{other}" input: "a" }}'
        signature = f'signature {{ name: "{name}" input_arg {{ name: "a" type: DT_FLOAT }} output_arg {{ name: "r" type: DT_FLOAT }} }}'
        return f'function {{ {signature} {call} ret {{ key: "r" value: "c:r:0" }} }}'

    last = rng.choice(["f", "g"])
    return _node("y", "f", "x") + f"library {{ {function('f', 'g')} {function('g', last)} }}\n"


def _cycle(rng: random.Random, folder: pathlib.Path) -> str:
    return (
        _node("a", "Identity", "b", T=_FLOAT)
        + _node("b", "Identity", "a", T=_FLOAT)
        + _node("y", "AddV2", "a x", T=_FLOAT)
    )


def _string_bomb(rng: random.Random, folder: pathlib.Path) -> str:
    body, last = _text("s0", "x" * 64), "s0"
    for number in range(1, rng.choice([30, 40, 60])):
        body += _node(f"s{number}", "StringJoin", f"{last} {last}", N="i: 2")
        last = f"s{number}"
    return body + _node("l", "StringLength", last) + _node("y", "Cast", "l", SrcT=_INT, DstT=_FLOAT)


def _fixed_fill(rng: random.Random, folder: pathlib.Path) -> str:
    return _int("shape", rng.choice([1 << 20, 1 << 30]), 1 << 16) + _ONE + _FILL_Y


def _computed_fill(rng: random.Random, folder: pathlib.Path) -> str:
    """A size that the graph computes from its input, so that nothing but running it shows how large it is."""
    body = _node("sum", "Sum", "x zero", T=_FLOAT, Tidx=_INT) + _int("zero", 0)
    body += _node("n", "Cast", "sum", SrcT=_FLOAT, DstT=_INT) + _int("big", rng.choice([1 << 17, 1 << 19]))
    body += _node("p", "Mul", "n big", T=_INT) + _node("shape", "Pack", "p p", T=_INT, N="i: 2", axis="i: 0")
    return body + _ONE + _FILL_Y


def _broadcast(rng: random.Random, folder: pathlib.Path) -> str:
    """A sum of a column and a row that a graph makes ever larger."""
    body = _int("column", 1 << 18, 1) + _int("row", 1, 1 << 18) + _ONE
    body += _node("a", "Fill", "column one", T=_FLOAT, index_type=_INT)
    body += _node("b", "Fill", "row one", T=_FLOAT, index_type=_INT)
    return body + _node("y", rng.choice(["AddV2", "Mul", "MatMul"][:2]), "a b", T=_FLOAT)


HOSTILE: dict[str, Callable[[random.Random, pathlib.Path], Any]] = {
    "write-file": _write_file,
    "read-file": _read_file,
    "python": _python,
    "abort": _abort,
    "unregistered": _unregistered,
    "endless-loop": _endless_loop,
    "endless-while": _endless_while,
    "cyclic-functions": _cyclic_functions,
    "cycle": _cycle,
    "string-bomb": _string_bomb,
    "fixed-fill": _fixed_fill,
    "computed-fill": _computed_fill,
    "broadcast": _broadcast,
}
