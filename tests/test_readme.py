"""What the documents show works as printed: code, commands, flags, files and links."""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import config  # there is no public way to switch op determinism off again

import engine
from compat_v1.training import layers
from engine import data
from engine.runs import picture, records

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "BUILD.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in DOCUMENTS}
MOST_LINES = {"README.md": 150, "BUILD.md": 60, "CONTRIBUTING.md": 45, "SECURITY.md": 80}
# Blocks that are not run as they stand, with the reason; the tests named run them in their own way.
SPECIAL = {
    ("README.md", 0): "an epoch of all examples takes long: test_the_example_of_the_readme_...",
    **{
        (
            "docs/export.md",
            number,
        ): "they need exports: tests/export/test_savedmodel.py, test_tflite.py, test_texts_and_vectors.py"
        for number in range(4)
    },
    **{
        ("docs/extending.md", number): "they are one module: tests/testing/test_extending_page.py"
        for number in range(7)
    },
    ("docs/from_keras.md", 0): "it is also a script: test_the_script_about_keras_statistics_...",
    ("docs/from_tf1.md", 0): "it needs a graph, build() and an optimizer: test_the_tf1_example_...",
}


def python_blocks(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", TEXTS[document], re.DOTALL)


BLOCKS = [(document, number) for document in TEXTS for number in range(len(python_blocks(document)))]


@pytest.mark.parametrize(("document", "number"), [block for block in BLOCKS if block not in SPECIAL])
def test_a_python_block_works_as_printed(
    document: str, number: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(records, "draw_curves", lambda *_: None)  # half the time of a short run
    monkeypatch.setattr(picture, "draw", lambda *_: None)
    exec(python_blocks(document)[number], {"__name__": "example"})
    config.disable_op_determinism()  # finetune switches it on


def test_blocks_that_are_run_in_a_way_of_their_own_exist() -> None:
    assert set(SPECIAL) <= set(BLOCKS)


def test_the_example_of_the_readme_is_ten_lines_and_works_as_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = data.open_data
    monkeypatch.setattr(data, "open_data", lambda spec, **given: opened(spec, **{**given, "train_examples": 1500}))
    (code,) = python_blocks("README.md")
    assert len([line for line in code.splitlines() if line]) == 10
    exec(code, {})
    printed = capsys.readouterr().out
    assert "item 2 `@blocks[-2:]`" in printed
    assert re.search(r"loss of the last step: [01]\.\d{3}\nfrozen variables that changed: \[\]\n", printed), printed


def test_the_script_about_keras_statistics_prints_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    page, script = TEXTS["docs/from_keras.md"], (ROOT / "docs/keras_statistics.py").read_text(encoding="utf-8")
    code = python_blocks("docs/from_keras.md")[0]
    assert script.endswith('"""\n\n' + code)
    exec(code, {})
    ours, theirs = capsys.readouterr().out.splitlines()
    assert ours == "Frostline: the moving mean moved by 0"
    moved = [float(line.rsplit(" ", 1)[1]) for line in (theirs, *re.findall(r"^    (Keras fit: .*)$", page, re.M))]
    assert moved[0] == pytest.approx(moved[1], rel=1e-3)
    assert moved[0] > 0.01
    assert f"    {ours}\n" in page


def keras_models() -> list[tuple[Any, Any]]:
    """A model for each row of the page's table, and its BatchNormalization."""
    import keras

    def functional(base: Any) -> Any:
        inputs = keras.Input((8,))
        return keras.Model(inputs, keras.layers.Dense(1)(base(inputs, training=False)))

    def base(norm: Any) -> Any:
        inputs = keras.Input((8,))
        return keras.Model(inputs, norm(keras.layers.Dense(4)(inputs)))

    class Subclassed(keras.Model):
        def __init__(self, base: Any) -> None:
            super().__init__()
            self.base, self.top = base, keras.layers.Dense(1)

        def call(self, inputs: Any, training: bool | None = None) -> Any:
            return self.top(self.base(inputs, training=False))

    norms = [keras.layers.BatchNormalization() for _ in range(6)]
    bases = {number: base(norms[number]) for number in (0, 1, 2, 5)}
    bases[0].trainable, norms[2].trainable = False, False
    sequential = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4), norms[3]])
    models = [*(functional(bases[number]) for number in range(3)), functional(sequential), functional(norms[4])]
    return list(zip([*models, Subclassed(bases[5])], norms, strict=True))


@pytest.mark.slow
def test_keras_models_hold_or_move_their_statistics_as_the_page_says() -> None:
    rows = re.findall(r"^\| .* \| (holds|\*\*moves\*\*) \|$", TEXTS["docs/from_keras.md"], re.MULTILINE)
    images = np.random.default_rng(0).normal(3.0, 2.0, size=(64, 8)).astype("float32")
    found = []
    for model, norm in keras_models():
        model.compile("adam", "mse")
        model.fit(images, images[:, :1], batch_size=32, verbose=0)
        found.append("**moves**" if np.any(norm.moving_mean.numpy()) else "holds")
    assert found == rows


def test_the_tf1_example_works_as_printed() -> None:
    def build() -> Any:
        x = layers.layer_norm(layers.dense(tf.ones([2, 3]), 4, name="body"), name="head/norm")
        return tf.reduce_mean(tf.square(layers.dense(x, 2, name="head")))

    (code,) = python_blocks("docs/from_tf1.md")
    names: dict[str, Any] = {"build": build, "optimizer": tf.compat.v1.train.AdamOptimizer(0.1)}
    with tf.Graph().as_default():
        exec(code, names)
    assert [variable.op.name for _, variable in names["gradients"].applied] == ["head/kernel", "head/bias"]


# ---- commands and flags


@pytest.fixture(scope="module")
def flags_of(programs: Any) -> Callable[[str], frozenset[str]]:
    """The flags that a program's own help lists."""

    @functools.cache
    def find(program: str) -> frozenset[str]:
        assert (ROOT / f"scripts/{program}.py").is_file(), f"there is no program {program}"
        done = programs.run(["-m", f"scripts.{program}", "--help"], seconds=120)
        assert done.returncode == 0, done.stderr
        named = frozenset(re.findall(r"^  --(?:\[no\])?(\w+)", done.stdout, re.MULTILINE))
        return named | {"help", "helpfull", "flagfile"}  # of absl

    return find


def commands(document: str) -> list[tuple[str, str]]:
    """(program, its words) of each command in a document."""
    text = TEXTS[document].replace("\\\n", " ")
    found = re.findall(r"(?:python -m scripts\.|\bfrostline )([a-z][\w-]*)((?: [^\n`]*)?)", text)
    return [
        (name.replace("-", "_"), words)
        for name, words in found
        if (ROOT / f"scripts/{name.replace('-', '_')}.py").is_file()
    ]


def test_every_command_uses_flags_that_exist(flags_of: Callable[[str], frozenset[str]]) -> None:
    found = [(document, *command) for document in TEXTS for command in commands(document)]
    assert len(found) > 30
    for document, program, words in found:
        named = set(re.findall(r"--([a-z_]+)", words))
        assert named <= flags_of(program), f"{document}: {program}"


def test_every_line_that_looks_like_a_command_is_one() -> None:
    for document, text in TEXTS.items():
        for name in re.findall(r"^    frostline ([a-z][\w-]*)", text, re.MULTILINE):
            assert (ROOT / f"scripts/{name.replace('-', '_')}.py").is_file(), f"{document}: frostline {name}"


def test_every_flag_that_is_named_exists(flags_of: Callable[[str], frozenset[str]]) -> None:
    programs = {program for document in TEXTS for program, _ in commands(document)}
    every = frozenset().union(*map(flags_of, programs))
    for document, text in TEXTS.items():
        assert set(re.findall(r"(?<![\w-])--([a-z][a-z_]+)", text)) <= every, document


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for document, text in TEXTS.items():
        for target in re.findall(r"(?:`|^    |&& )make ([a-z-]+)", text, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{document}: make {target}"


# ---- files, links, lengths, words


def slugs(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_files_links_and_anchors_exist() -> None:
    for document, text in TEXTS.items():
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if link.startswith("https://"):
                continue
            name, _, anchor = link.partition("#")
            target = (ROOT / document).parent / name if name else ROOT / document
            assert target.is_file(), f"{document}: {link}"
            if anchor:
                assert anchor in slugs(target.read_text(encoding="utf-8")), f"{document}: {link}"


def test_paths_of_the_project_that_are_named_exist() -> None:
    for document, text in TEXTS.items():
        for name in re.findall(r"`((?:engine|compat_v1|scripts|tests|docs)/[\w./]*)`", text):
            if document != "CHANGELOG.md" and "NAME" not in name:
                assert (ROOT / name).exists(), f"{document}: {name}"


def test_the_index_lists_every_page() -> None:
    linked = set(re.findall(r"\]\((\w+\.md)\)", TEXTS["docs/index.md"]))
    assert linked == {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}


def test_the_page_about_python_lists_every_public_name() -> None:
    (table,) = re.findall(r"\| name \| what it is for \|\n\|---\|---\|\n(.*?)\n\n", TEXTS["docs/python.md"], re.DOTALL)
    named = {name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert named == set(engine.__all__) - {"__version__"}


@pytest.mark.parametrize("document", MOST_LINES)
def test_a_document_stays_short(document: str) -> None:
    assert len(TEXTS[document].splitlines()) <= MOST_LINES[document]


def test_a_step_is_called_a_step() -> None:
    for document, text in TEXTS.items():
        if document != "CHANGELOG.md":
            assert not re.search(r"\bwindows?\b", text, re.IGNORECASE), document
