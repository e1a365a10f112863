"""The network of a SavedModel: its paths, its traces, what its training mode does, and what is refused."""

from __future__ import annotations

import contextlib
import hashlib
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import saved_trunks as saved
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

import compat_v1  # noqa: F401 - builds SavedModels of TensorFlow 1
from engine import select
from engine.errors import GraphError, InputError
from engine.graphs.safety import UnsafeGraphError
from engine.models import build_model, default_image_size
from engine.models.spec import Model, ModelSpecError
from engine.selection.filters import FilterError
from engine.selection.variables import name_variables

CLASSES = 4
Save = Callable[..., str]


class Swish(saved.Trunk):
    def compute(self, x: Any, training: bool) -> tuple[Any, Any]:
        found, pooled = super().compute(x, training)
        return found, tf.nn.silu(pooled)


class Reversed(saved.Trunk):
    """A gradient that is not that of what it computes, between the two blocks."""

    def compute(self, x: Any, training: bool) -> tuple[Any, Any]:
        @tf.custom_gradient
        def turned(value: Any) -> Any:
            return tf.identity(value), lambda upstream: -upstream

        found = self.high(turned(self.low(x, training)), training)
        return found, tf.reduce_mean(found, [1, 2]) @ self.dense


class Gathering(saved.Trunk):
    """It looks up rows of a variable, by an operation with an axis that only the look-up in a value has."""

    def __init__(self) -> None:
        super().__init__()
        self.table = tf.Variable(tf.reshape(tf.range(8.0), [4, 2]), name="table/rows")

    def compute(self, x: Any, training: bool) -> tuple[Any, Any]:
        found, pooled = super().compute(x, training)
        return found, tf.concat([pooled, tf.gather(self.table, tf.argmax(pooled[:, :4], 1))], 1)


class Rounded(saved.Trunk):
    """Its features say nothing of how its variables should move."""

    def compute(self, x: Any, training: bool) -> tuple[Any, Any]:
        found, pooled = super().compute(x, training)
        return found, tf.cast(tf.cast(pooled * 8, tf.int32), tf.float32)


class Apart(saved.Trunk):
    """It averages moments of its batch, but normalises by others, so that inference cannot be made of its training."""

    def compute(self, x: Any, training: bool) -> tuple[Any, Any]:
        found, pooled = super().compute(x, training)
        return found, pooled - tf.reduce_mean(pooled, 0) if training else pooled


class Checked(saved.Trunk):
    """It checks its images, and has a second output that says nothing of the first."""

    @tf.function(autograph=False)
    def __call__(self, x: Any, training: bool = False) -> Any:
        with tf.control_dependencies([tf.debugging.assert_less(x, 9.0, message="too bright")]):
            low = self.low(tf.identity(x), training)
        return {"low": low, "high": self.high(low, training)}


class Calling(saved.Trunk):
    """It runs Python code."""

    def compute(self, x: Any, training: bool) -> tuple[Any, Any]:
        found, pooled = super().compute(x, training)
        return found, tf.ensure_shape(tf.py_function(lambda value: value, [pooled], tf.float32), [None, saved.FEATURES])


class Reading(saved.Trunk):
    """It reads a file."""

    def compute(self, x: Any, training: bool) -> tuple[Any, Any]:
        found, pooled = super().compute(x, training)
        return found, pooled + tf.cast(tf.strings.length(tf.io.read_file("/etc/hostname")), tf.float32) * 0.0


KINDS: dict[str, Callable[[], tf.Module]] = {
    "plain": saved.Trunk,
    "fused": lambda: saved.Trunk(fused=True),
    "dropout": lambda: saved.Trunk(dropout=0.5),
    "unnamed": lambda: saved.Trunk(named=False),
    "softmax": lambda: saved.Trunk(softmax=True),
    "outputs": saved.TwoOutputs,
    "switched": saved.Switched,
    "served": saved.ServedOnly,
    "swish": Swish,
    "reversed": Reversed,
    "rounded": Rounded,
    "apart": Apart,
    "gathering": Gathering,
    "calling": Calling,
    "reading": Reading,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a SavedModel of some kind, saved once."""
    folders: dict[str, str] = {}

    def find(kind: str) -> str:
        if kind not in folders:
            folders[kind] = saved.save(KINDS[kind](), tmp_path_factory.mktemp("saved") / kind)
        return folders[kind]

    return find


def build(folder: str, options: str = ",preprocess=tf", **given: Any) -> Model:
    given = {"image_shape": saved.SHAPE, "outputs": CLASSES} | given
    return build_model(f"savedmodel:{folder}{options}", **given)


def images(count: int = 4) -> Any:
    return tf.constant(np.random.default_rng(7).standard_normal([count, *saved.SHAPE]), tf.float32)


def run(model: Model, train: str, *, seeds: int = 0) -> np.ndarray:
    """The outputs of a training step that trains these variables."""
    selection = select(model.network, train, statistics="frozen")
    with selection.modes():
        rows = tf.constant(np.full((4, 2), seeds), tf.int32)
        return np.asarray(model.network(images(), training=True, seeds=rows))


# ---- variables


def test_variables_have_the_names_that_layers_gave_them_with_their_groups_and_places(made: Save) -> None:
    model = build(made("plain"))
    found = {entry.path: entry for entry in name_variables(model.network)}
    assert set(list(found)[:5]) == {path for path in found if path.startswith("low/")}
    assert list(found)[-3:] == ["dense/kernel", "head/logits/kernel", "head/logits/bias"]
    assert found["low/bn/moving_mean"].kind == "statistic"
    assert found["low/bn/gamma"].groups == {"norm"}
    assert found["high/conv/kernel"].layers == (("", 2, 5),)
    assert {e.path for e in select(model.network, "@layers[-2:]").trained} == {
        "high/bn/gamma",
        "high/bn/beta",
        "dense/kernel",
    }
    assert (model.upper, model.statistics) == ("@layers[-20:]", "frozen")


@pytest.mark.slow
def test_variables_without_names_have_the_paths_of_attributes(made: Save) -> None:
    paths = [entry.path for entry in name_variables(build(made("unnamed")).network)]
    assert {"low/kernel", "high/moving_mean", "dense", "head/logits/bias"} <= set(paths)


# ---- what it computes


@pytest.mark.parametrize(
    "kind", ["plain", "gathering", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("fused", "switched"))]
)
def test_it_computes_what_tensorflow_computes_in_both_modes(made: Save, kind: str) -> None:
    model, loaded = build(made(kind)), tf.saved_model.load(made(kind))
    trunk = model.network
    trunk.__dict__["_head"] = None
    on, off = (tf.constant(True), tf.constant(False)) if kind == "switched" else (True, False)
    np.testing.assert_array_equal(trunk(images(), training=False), loaded(images(), training=off))
    np.testing.assert_array_equal(trunk(images(), training=True), loaded(images(), training=on))
    known = {
        v.name.removesuffix(":0"): v
        for v in [*vars(loaded.low).values(), *vars(loaded.high).values()]
        if hasattr(v, "name")
    }
    for entry in name_variables(trunk):
        if entry.kind == "statistic":
            np.testing.assert_array_equal(entry.variable, known[entry.path])


@pytest.mark.parametrize("kind", ["plain", pytest.param("fused", marks=pytest.mark.slow)])
def test_a_layer_that_trains_moves_its_statistics_while_the_others_run_as_in_inference(made: Save, kind: str) -> None:
    model, module = build(made(kind)), KINDS[kind]()
    model.network.__dict__["_head"] = None
    found = run(model, "high/.* @stats")
    expected = tf.reduce_mean(module.high(module.low(images(), False), True), [1, 2]) @ module.dense  # type: ignore[attr-defined]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    values = {entry.path: entry.variable.numpy() for entry in name_variables(model.network)}
    for block in ("low", "high"):
        for name in ("moving_mean", "moving_variance"):
            np.testing.assert_allclose(values[f"{block}/bn/{name}"], getattr(getattr(module, block), name), rtol=1e-5)


def test_dropout_draws_from_the_seeds_of_the_examples(made: Save) -> None:
    model = build(made("dropout"))
    model.network.__dict__["_head"] = None
    one, again, other = (run(model, "high/.*", seeds=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    quiet = np.asarray(model.network(images(), training=False))
    np.testing.assert_array_equal(quiet, tf.saved_model.load(made("dropout"))(images(), training=False))


@pytest.mark.slow
def test_each_of_several_tasks_gets_a_head(made: Save) -> None:
    model = build(made("plain"), tasks={"age": 1, "kind of bird": 3}, logits=frozenset(["kind of bird"]))
    assert {task: found.shape[1] for task, found in model.network(images()).items()} == model.tasks
    paths = [entry.path for entry in name_variables(model.network) if "head" in entry.groups]
    assert paths[::2] == ["head/age/logits/kernel", "head/kind_of_bird/logits/kernel"]


def test_an_output_is_chosen_by_name_and_a_map_is_pooled(made: Save) -> None:
    model = build(made("outputs"), ",output=map,preprocess=tf", head="gmp,8")
    assert model.network(images()).shape == (4, CLASSES)
    assert [e.path for e in name_variables(model.network)][-4:] == [
        "head/hidden_0/kernel",
        "head/hidden_0/bias",
        "head/logits/kernel",
        "head/logits/bias",
    ]
    assert not any(entry.path == "dense/kernel" for entry in name_variables(model.network))


@pytest.mark.slow
def test_its_own_outputs_are_kept_where_they_fit_without_the_softmax(made: Save) -> None:
    model = build(made("softmax"), outputs=saved.FEATURES)
    expected = tf.saved_model.load(made("softmax"))(images(), training=False)
    np.testing.assert_allclose(tf.nn.softmax(model.network(images())), expected, rtol=1e-5)
    assert any("the final softmax was left out" in note for note in model.notes)
    with pytest.raises(ModelSpecError, match="they end in softmax; output= names its features"):
        build(made("softmax"))


def test_a_model_without_a_trace_for_training_trains_through_that_for_inference(made: Save) -> None:
    model = build(made("served"))
    assert any("has no trace for training" in note for note in model.notes)
    np.testing.assert_array_equal(run(model, "@all"), model.network(images()))
    with pytest.raises(FilterError, match="`@stats` matches nothing"):
        select(model.network, "@all @stats")


def test_its_size_is_that_of_its_trace(made: Save) -> None:
    assert default_image_size(f"savedmodel:{made('plain')}") == saved.SHAPE[:2]
    with pytest.raises(ModelSpecError, match=r"--image_size=6x6 resizes images"):
        build(made("plain"), image_shape=(8, 8, 3))


@pytest.mark.slow
def test_checks_in_the_file_stay_and_other_outputs_go(tmp_path: pathlib.Path) -> None:
    module = Checked()
    for training in (True, False):
        module.__call__.get_concrete_function(tf.TensorSpec([None, *saved.SHAPE]), training=training)
    tf.saved_model.save(module, str(tmp_path / "checked"))
    model = build(str(tmp_path / "checked"), ",output=low,preprocess=tf")
    assert {entry.path.partition("/")[0] for entry in name_variables(model.network)} == {"low", "head"}
    assert run(model, "@head").shape == (4, CLASSES)
    with pytest.raises(tf.errors.InvalidArgumentError, match="too bright"):
        model.network(images() + 10.0)


# ---- gradients


@pytest.mark.parametrize(
    ("kind", "train", "message"),
    [
        ("reversed", "@all", "has a gradient of its own, which is not read from the file"),
        ("reversed", "high/.* @head", None),
        ("rounded", "@all", r"no gradient reaches its variables, so they cannot train; the head alone can train"),
        pytest.param("rounded", "@head", None, marks=pytest.mark.slow),
        pytest.param("swish", "@all", None, marks=pytest.mark.slow),
    ],
)
def test_what_has_no_gradient_is_refused_with_what_is_possible(
    made: Save, kind: str, train: str, message: str | None
) -> None:
    model = build(made(kind))
    selection = select(model.network, train, statistics="frozen")

    def step() -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([entry.variable for entry in selection.trained])
            loss = tf.reduce_sum(model.network(images(), training=True) ** 2)
        return tape.gradient(loss, [entry.variable for entry in selection.trained])

    traced = tf.function(step, autograph=False)
    if message is not None:
        with pytest.raises(GraphError, match=message):
            traced.get_concrete_function()
    else:
        assert all(np.abs(each).max() > 0 for each in traced())


# ---- what is refused


@pytest.mark.parametrize(
    ("kind", "message"), [("calling", "EagerPyFunc.*it runs Python code"), ("reading", "ReadFile.*it reaches files")]
)
def test_an_operation_that_does_more_than_compute_is_refused_before_anything_runs(
    made: Save, kind: str, message: str
) -> None:
    with pytest.raises(UnsafeGraphError, match=f"(?s){message}"):
        build(made(kind))


@pytest.mark.parametrize(
    ("kind", "options", "given", "message"),
    [
        (
            "plain",
            "",
            {},
            "does not scale its input.*option preprocess.*unit, 0 to 1, is what models of TensorFlow Hub",
        ),
        ("plain", ",signature=serve", {}, "has no function of this name; it has __call__"),
        ("plain", ",signature=", {}, "signature= has no value"),
        ("plain", ",sign=x", {}, "`sign` is not an option of a SavedModel.*nearest: signature"),
        (
            "plain",
            ",output=pooled",
            {},
            "output=pooled: __call__ returns no such tensor; it returns one without a name",
        ),
        ("outputs", "", {}, r"returns 2 tensors; output=NAME says.*map \[\?, 3, 3, 4\], pooled \[\?, 5\]"),
        ("outputs", ",output=pool", {}, "output=pool.*it returns map, pooled; nearest: pooled"),
        ("plain", "", {"image_shape": (6, 6, 1)}, r"its input x is \[\?, 6, 6, 3\]"),
        ("plain", "", {"head": "mean"}, "is not a valid head"),
        ("plain", "", {"graph": {"features": "x"}}, "it is about a graph of TensorFlow 1"),
        ("plain", ",tags=train", {}, "tags=train: no graph has these tags"),
        ("fused", ",preprocess=tf", {"dtype": tf.float64}, "operations that compute in float32 alone"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(
    made: Save, kind: str, options: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"(?s){message}"):
        build(made(kind), options, **given)


def test_layers_that_cannot_be_held_are_found_by_running_them(made: Save) -> None:
    model = build(made("apart"))
    with pytest.raises(GraphError, match="the features of an example still depend on the others of its batch"):
        run(model, "high/.* @stats")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "saved_model.pb").unlink(), "the folder holds no saved_model.pb"),
        (
            lambda folder: (folder / "saved_model.pb").write_bytes((folder / "saved_model.pb").read_bytes()[:5000]),
            "truncated",
        ),
        (
            lambda folder: (folder / "saved_model.pb").write_bytes(b"version https://git-lfs.github.com"),
            "Git LFS pointer",
        ),
        (lambda folder: (folder / "variables/variables.index").unlink(), "no such file"),
        (lambda folder: next((folder / "variables").glob("*data*")).write_bytes(b"short"), "truncated"),
        (shutil.rmtree, "there is no such folder"),
    ],
)
def test_a_damaged_folder_is_named(
    made: Save, tmp_path: pathlib.Path, damage: Callable[[pathlib.Path], Any], message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(made("plain"), folder)
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        build(str(folder))
    assert str(folder) in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_any_damage_of_the_graph_is_an_error_in_words_or_changes_nothing(
    made: Save, tmp_path: pathlib.Path, seed: int
) -> None:
    """Bytes of saved_model.pb are changed where most of its structure lies, behind the functions."""
    rng = np.random.default_rng(seed)
    shutil.copytree(made("plain"), tmp_path / "model")
    file = tmp_path / "model/saved_model.pb"
    content = bytearray(file.read_bytes())
    for place in rng.integers(0, len(content), 3):
        content[place] ^= 1 << rng.integers(8)
    file.write_bytes(content)
    with contextlib.suppress(InputError, tf.errors.OpError):  # the latter where a changed shape or constant is run
        run(build(str(tmp_path / "model")), "high/.* @head @stats")


def damage_node(folder: pathlib.Path, name: str, change: Callable[[Any], Any]) -> None:
    """Changes the nodes of some name in the functions of a SavedModel."""
    file = folder / "saved_model.pb"
    model = saved_model_pb2.SavedModel()
    model.ParseFromString(file.read_bytes())
    for function in model.meta_graphs[0].graph_def.library.function:
        for node in function.node_def:
            if node.name.endswith(name):
                change(node)
    file.write_bytes(model.SerializeToString())


def test_a_constant_of_another_dtype_than_its_node_is_refused_before_anything_runs(
    made: Save, tmp_path: pathlib.Path
) -> None:
    """TensorFlow ends the process at such a file."""
    shutil.copytree(made("plain"), tmp_path / "model")

    def change(node: Any) -> None:
        node.attr["value"].tensor.dtype = tf.int32.as_datatype_enum

    damage_node(tmp_path / "model", "batchnorm/add/y", change)
    with pytest.raises(UnsafeGraphError, match="its value is int32, but its result is float32; the file is damaged"):
        build(str(tmp_path / "model"))


def test_a_statistic_that_would_get_another_shape_is_an_error_in_words(made: Save, tmp_path: pathlib.Path) -> None:
    shutil.copytree(made("plain"), tmp_path / "model")
    damage_node(tmp_path / "model", "moments/Squeeze", lambda node: node.attr["squeeze_dims"].list.i.pop())
    with pytest.raises(GraphError, match=r"of shape \(4,\) a value of shape .*; the file is damaged"):
        run(build(str(tmp_path / "model")), "@all @stats")


# ---- handles


def test_a_handle_is_a_folder_or_an_address_in_the_cache(
    made: Save, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = "https://tfhub.dev/someone/trunk/1"
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path))
    place = tmp_path / hashlib.sha1(handle.encode()).hexdigest()
    with pytest.raises(ModelSpecError, match="not in the cache of TensorFlow Hub, and nothing is downloaded") as caught:
        build_model(f"hub:{handle},preprocess=unit", image_shape=saved.SHAPE, outputs=CLASSES)
    assert str(place) in str(caught.value)
    assert "TFHUB_CACHE_DIR" in str(caught.value)
    shutil.copytree(made("plain"), place)
    for name in (handle, made("plain")):
        model = build_model(f"hub:{name},preprocess=unit", image_shape=saved.SHAPE, outputs=CLASSES)
        assert len(name_variables(model.network)) == 13
    for name, message in (("gs://bucket/x", "gs://"), ("", "or hub:HANDLE"), ("no/folder", "no such folder")):
        with pytest.raises(ModelSpecError, match=message):
            build_model(f"hub:{name}", image_shape=saved.SHAPE, outputs=CLASSES)


# ---- TensorFlow 1


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Hub module of TensorFlow 1: two graphs, without tags and with "train", and signatures."""
    v1, folder = tf.compat.v1, str(tmp_path_factory.mktemp("old") / "module")
    builder = v1.saved_model.builder.SavedModelBuilder(folder)
    for number, tags in enumerate(([], ["train"])):
        with v1.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, [None, *saved.SHAPE], name="images")
            kernel = v1.get_variable("conv/kernel", [3, 3, 3, 4], initializer=v1.initializers.ones())
            found = tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME")), [1, 2])
            named = {"default": found, "again": 2.0 * found}
            signature = v1.saved_model.signature_def_utils.predict_signature_def({"images": x}, named)
            session.run(v1.global_variables_initializer())
            add = builder.add_meta_graph if number else builder.add_meta_graph_and_variables
            add(*(() if number else (session,)), tags, signature_def_map={"default": signature})
    builder.save()
    return folder


def test_a_module_of_tensorflow_1_is_built_as_a_graph_with_the_same_prefix(old: str) -> None:
    model = build(old, ",output=again,preprocess=unit", head="gap")
    assert any("is a SavedModel of TensorFlow 1: built as graph:" in note for note in model.notes)
    assert [entry.path for entry in name_variables(model.network)][:1] == ["conv/kernel"]
    assert model.network(images()).shape == (4, CLASSES)
    trained = build(old, ",tags=train,signature=default,preprocess=unit", head="gap")
    assert any("the graph tagged train" in note for note in trained.notes)
    for options, message in (
        (",signature=x", "no such signature; it has default"),
        (",output=x", "there is no such output"),
    ):
        with pytest.raises(ModelSpecError, match=message):
            build(old, options, head="gap")


def test_without_compat_v1_it_says_how_to_build_one(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.models import outside

    monkeypatch.setattr(outside, "_FINDERS", {})
    with pytest.raises(ModelSpecError, match="write `import compat_v1` before"):
        build(old, ",preprocess=unit", head="gap")
