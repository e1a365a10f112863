"""The public names: what ``import engine`` offers, their signatures, and the examples in docstrings."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pathlib
import subprocess
import sys

import pytest

import engine
from engine import tensorflow_private
from engine.runs import picture, records

ROOT = pathlib.Path(__file__).resolve().parents[1]
_DECAY = "'Filter' = Not(inner=Or(left=Or(left=Or(left=Group(name='bias'), right=Group(name='norm')), right=Group(name='embedding')), right=Group(name='ssf')))"
_RULE = f"decay: {_DECAY}, decays: 'Rates | None' = None, decay_toward: \"Literal['zero', 'start']\" = 'zero', layer_decay: 'float | None' = None, clip_norm: 'float | None' = None"
_ADAM = "epsilon_placement: \"Literal['uncorrected', 'corrected']\" = 'uncorrected'"
# None: a name that is not called, or an exception.
SIGNATURES: dict[str, str | None] = {
    "Adadelta": f"(*, weight_decay: 'float' = 0.0, {_RULE}, rho: 'float' = 0.95, epsilon: 'float' = 1e-08) -> None",
    "Adagrad": f"(*, weight_decay: 'float' = 0.0, {_RULE}, initial_accumulator: 'float' = 0.1, epsilon: 'float' = 0.0) -> None",
    "Adam": f"(*, weight_decay: 'float' = 0.0, {_RULE}, beta1: 'float' = 0.9, beta2: 'float' = 0.999, epsilon: 'float' = 1e-08, {_ADAM}) -> None",
    "AdamW": f"(*, weight_decay: 'float' = 0.01, {_RULE}, beta1: 'float' = 0.9, beta2: 'float' = 0.999, epsilon: 'float' = 1e-08, {_ADAM}) -> None",
    "Filter": "()",
    "FinetuneConfig": "one field for each flag",  # tests/recipes/test_config.py compares them all
    "FilterError": None,
    "FreezeProof": "(before: 'Mapping[str, str]') -> None",
    "Ftrl": f"(*, weight_decay: 'float' = 0.0, {_RULE}, learning_rate_power: 'float' = -0.5, initial_accumulator: 'float' = 0.1, l1: 'float' = 0.0, l2: 'float' = 0.0, l2_shrinkage: 'float' = 0.0, beta: 'float' = 0.0) -> None",
    "InputError": None,
    "Loss": "(terms: ForwardRef('Mapping[str, tuple[Any, Any]]'), regulariser: ForwardRef('Any') = None, metrics: ForwardRef('Mapping[str, tuple[Any, Any]]') = {}, measured: ForwardRef('Mapping[str, tuple[Metric, Mapping[str, Any]]]') = {})",
    "LossScale": "(scale: 'float' = 32768.0, good: 'int' = 0, floor: 'float' = 1.0, cap: 'float' = 16777216.0, growth_every: 'int' = 2000) -> None",
    "Momentum": f"(*, weight_decay: 'float' = 0.0, {_RULE}, momentum: 'float' = 0.9, nesterov: 'bool' = False) -> None",
    "RMSProp": f"(*, weight_decay: 'float' = 0.0, {_RULE}, rho: 'float' = 0.9, momentum: 'float' = 0.0, epsilon: 'float' = 1e-10, centered: 'bool' = False, epsilon_placement: \"Literal['inside', 'outside']\" = 'inside', initial_accumulator: 'float' = 1.0) -> None",
    "SGD": f"(*, weight_decay: 'float' = 0.0, {_RULE}) -> None",
    "Selection": "(variables: 'ModelVariables', trained: 'tuple[NamedVariable, ...]', moving: 'tuple[NamedVariable, ...]', frozen: 'tuple[NamedVariable, ...]', rules: 'Mapping[str, str]', inference: 'tuple[StatisticsLayer, ...]', losses: 'tuple[str, ...] | None' = None) -> None",
    "StepResult": "(loss: 'Any', terms: 'Mapping[str, Any]', metrics: 'Mapping[str, Any]', grad_norm: 'Any', skipped: 'bool' = False, loss_scale: 'float' = 1.0, left_out: 'tuple[str, ...]' = (), stopping: 'bool' = False, metric_weights: 'Mapping[str, Any]' = <factory>) -> None",
    "Task": "(*, source: 'sources.Source', model: 'models.Model', variables: 'ModelVariables', loss: 'str', loss_fn: 'LossFunction', numbers: 'Precision', seed: 'int', batch_size: 'int', augment: 'tuple[str, ...]' = (), images: 'str | None' = None, weights: 'LoadedWeights | None' = None, image_options: 'ImageOptions' = ImageOptions(image_pixels='rgb', image_fit='cover', image_mask=False, nan='stop'), outputs: 'tuple[Output, ...]' = (), sample_weights: 'np.ndarray | None' = None, metrics: 'Mapping[str, tuple[Metric, ...]]' = <factory>) -> None",
    "TrainStep": "(loss_fn: 'LossFunction', optimizer: 'Optimizer', *, seed: 'int' = 0, micro_batch_size: 'int | None' = None, remat: 'str' = 'none', loss_scale: 'LossScale | None' = None, ema: 'float | None' = None, nonfinite: 'NonFinite | None' = None, give_up: 'int' = 20, jit_compile: 'str' = 'auto', strategy: 'Any | None' = None, sync_batch_norm: 'bool' = False) -> 'None'",
    "__version__": None,
    "apply_delta": "(base: 'PathLike', delta: 'PathLike | Sequence[PathLike]', out: 'PathLike', *, rules: 'PathLike | None' = None, run: 'PathLike | None' = None, force_base: 'bool' = False) -> 'AppliedDelta'",
    "audit_graph": "(facts: 'GraphFacts', train_op: 'str | Sequence[str] | None' = None, *, expect_frozen: 'Filter | str | None' = None) -> 'Audit'",
    "audit_step": "(step: 'TrainStep', selection: 'Selection', batch: 'Mapping[str, Any]') -> 'Audit'",
    "blocks": None,
    "build_model": "(spec: 'str', *, image_shape: 'tuple[int, ...]', outputs: 'int', outputs_of: 'OutputsOf | None' = 'example', head: 'str | None' = None, logits: 'bool | Collection[str]' = True, seed: 'int' = 0, dtype: 'Any' = tf.float32, compute: 'Any' = None, graph: 'Mapping[str, str] | None' = None, inputs: 'Mapping[str, ArraySpec] | None' = None, tasks: 'Mapping[str, int] | None' = None) -> 'Model'",
    "export_savedmodel": "(run: 'PathLike', out: 'PathLike', *, data: 'str | None' = None, ema: 'bool | None' = None, checkpoint: 'str | None' = None) -> 'ExportResult'",
    "finetune": "(config: 'FinetuneConfig', *, listener: 'Listener | None' = None) -> 'RunResult'",
    "group": "(name: 'str') -> 'Filter'",
    "layers": "(model: 'str') -> '_Slices'",
    "load_weights": "(model: 'Model', weights: 'PathLike' = 'auto', *, rules: 'PathLike | None' = None, image_shape: 'tuple[int, ...] | None' = None, classes: 'Sequence[str] | None' = None, force_base: 'bool' = False) -> 'LoadedWeights'",
    "open_data": "(spec: 'str', *, eval_fraction: 'float | None' = None, train_examples: 'int | None' = None, image_size: 'Size | None' = None, bad_images: 'str' = 'stop', image_cache: 'int' = 1073741824, parts: 'str' = 'auto', images: 'ImageOptions' = ImageOptions(image_pixels='rgb', image_fit='cover', image_mask=False, nan='stop'), file_size: 'Size | Callable[[], Size]' = (224, 224), masks: 'str | None' = None, tokenizer: 'TokenizerFiles | None' = None, say: 'Say' = <built-in function print>) -> 'Source'",
    "parse_filter": "(text: 'str') -> 'Ordered'",
    "parse_rates": "(text: 'str', *, name: 'str' = 'rates') -> 'Rates'",
    "path": "(pattern: 'str') -> 'Filter'",
    "select": "(model: 'Any', filter: 'Filter | str', *, statistics: 'Statistics' = 'follow') -> 'Selection'",
    "supervised_loss": "(model: 'Any', kind: 'str' = 'softmax', *, label_smoothing: 'float' = 0.0, class_weights: 'Mapping[str, Sequence[float]] | None' = None, metrics: 'Sequence[Metric] | Mapping[str, Sequence[Metric]]' = (), inputs: 'Sequence[str] | None' = None) -> 'LossFunction'",
}
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("engine", "compat_v1")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]


def signature(name: str) -> str | None:
    try:
        return str(inspect.signature(getattr(engine, name)))
    except (TypeError, ValueError):
        return None


def test_the_public_names_are_these() -> None:
    assert sorted(engine.__all__) == sorted(SIGNATURES)
    assert dir(engine) == engine.__all__


@pytest.mark.parametrize("name", sorted(set(SIGNATURES) - {"FinetuneConfig"}))
def test_a_public_name_keeps_its_signature(name: str) -> None:
    assert signature(name) == SIGNATURES[name]


@pytest.mark.parametrize("name", sorted(set(SIGNATURES) - {"__version__"}))
def test_a_public_name_has_an_example(name: str) -> None:
    (test,) = doctest.DocTestFinder(recurse=False, exclude_empty=False).find(getattr(engine, name), name)
    assert test.examples


# Examples that train and then write a model or a file: in `make test`, tests of these functions do the same.
LONG = {
    "engine.export.run",
    "engine.export.update",
    "engine.recipes.apply_delta",
    "engine.recipes.finetune",
    "engine.recipes.run_result",
}


@pytest.mark.parametrize("module", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in MODULES])
def test_the_examples_of_a_module_are_true(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "draw_curves", lambda *_: None)  # half the time of a short run
    monkeypatch.setattr(picture, "draw", lambda *_: None)
    try:
        found = doctest.testmod(importlib.import_module(module), optionflags=OPTIONS)
    finally:
        tensorflow_private.disable_op_determinism()  # finetune switches it on, and later tests count ops without it
    assert found.failed == 0
    assert found.attempted > 0


def test_a_name_that_is_not_there_tells_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"module 'engine' has no attribute 'TrainStp'; nearest: TrainStep"):
        _ = engine.TrainStp


def test_import_engine_imports_neither_tensorflow_nor_numpy() -> None:
    code = "import sys, engine; print(engine.__version__, {'tensorflow', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{engine.__version__} set()\n"
