"""A process for the tests of E7: trains cases on one device and on several replicas, and prints how far apart they are.

``python tests/e7_program.py KIND CASES``: KIND is ``mirrored:N`` (N logical devices) or ``multiworker`` (TF_CONFIG says
which worker this is); CASES are a JSON list of the fields of ``Case``. The last line of the output is a JSON list with one
entry per case. Logical devices and collective operations must be configured before TensorFlow starts, so it is a process.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

EXAMPLES = {"even": 6, "uneven": 7, "few": 1}  # in a step; "few" is less than any number of replicas
TRAIN = {"vit": "@blocks[-1:] @head", "dense": "hidden/.* head/.*", "cnn": "@all @stats", "keras": "@all @stats"}
NORMS = ("cnn", "keras")


class Case(NamedTuple):
    """What is trained, and how."""

    size: str
    weighted: bool
    terms: int
    micro: int
    optimizer: str
    cached: bool = False
    jit_compile: str = "off"
    model: str = "vit"  # "vit", "dense", "cnn" or "keras"; the last two have BatchNorm, whose moments are synchronised


def start(kind: str) -> Any:
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    name, _, count = kind.partition(":")
    if name == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(count))
        return tf.distribute.MirroredStrategy([f"/cpu:{number}" for number in range(int(count))])
    ring = tf.distribute.experimental.CommunicationImplementation.RING
    options = tf.distribute.experimental.CommunicationOptions(implementation=ring)
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


def make_dense(dtype: Any) -> Any:
    """A frozen layer, a hidden one with dropout by the examples' seeds, and a head: traced in a moment."""
    import numpy as np
    import tensorflow as tf

    from engine.models import layers

    class Dense(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            rng = np.random.default_rng(1)
            make = functools.partial(layers.Dense, rng=rng, dtype=dtype)
            self.stem, self.hidden, self.head = make(64, 16), make(16, 12), make(12, 4)

        def __call__(self, images: Any, *, training: bool, seeds: Any) -> Any:
            x = tf.tanh(self.stem(tf.cast(tf.reshape(images, [-1, 64]), dtype)))
            x = tf.tanh(self.hidden(x))
            return self.head(layers.dropout(x, 0.2, seeds=seeds, site=0) if training else x)

    return Dense()


def make_keras(dtype: Any) -> Any:
    import keras

    keras.utils.set_random_seed(0)
    own = {"dtype": dtype.name}
    image = keras.Input((8, 8, 1), **own)
    x = keras.layers.Conv2D(4, 3, use_bias=False, **own)(image)
    x = keras.layers.ReLU(**own)(keras.layers.BatchNormalization(**own)(x))
    x = keras.layers.SeparableConv2D(6, 3, use_bias=False, **own)(x)
    x = keras.layers.ReLU(**own)(keras.layers.BatchNormalization(momentum=0.8, **own)(x))
    x = keras.layers.GlobalAveragePooling2D(**own)(x)
    return keras.Model(image, keras.layers.Dense(4, **own)(x))


class Side:
    """A model with its step; every ``run`` starts from the same weights."""

    def __init__(self, case: Case, dtype: Any, strategy: Any) -> None:
        from engine import TrainStep, select
        from engine.frostline.cuts import cut_step
        from engine.models import build_model
        from engine.training import optimizers

        self.case = case
        if case.model == "dense":
            self.model: Any = make_dense(dtype)
        elif case.model == "cnn":
            self.model = build_model("cnn:mini", image_shape=(8, 8, 1), outputs=4, dtype=dtype).network
        elif case.model == "keras":
            self.model = make_keras(dtype)
        else:
            spec = "vit:mini,depth=2" + ("" if case.cached else ",dropout=0.2,drop_path=0.3")
            self.model = build_model(spec, image_shape=(8, 8, 1), outputs=4, dtype=dtype).network
            self.model.blocks[-1].dropout_rate = 0.2  # also above the frost line
        self.selection = select(self.model, TRAIN[case.model])
        micro = None if case.micro == 1 else 3 if strategy is None else 2
        settings = {"micro_batch_size": micro, "strategy": strategy, "jit_compile": case.jit_compile}
        settings["sync_batch_norm"] = case.model in NORMS and strategy is not None
        self.step = TrainStep(self.loss, optimizers.SGD(), **settings)
        self.start = [entry.variable.numpy() for entry in self.selection.variables]
        self.line: Any = None
        if case.cached:
            self.line = cut_step(self.step, self.selection, self.share(batch(0, 6)))
            assert hasattr(self.line, "prefix"), self.line

    def loss(self, batch: Mapping[str, Any], *, training: bool, seeds: Any) -> Any:
        import tensorflow as tf

        from engine.training.losses import Loss

        more = {} if self.case.model in NORMS else {"seeds": seeds}
        logits = self.model(batch["image"], training=training, **more)
        values = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=batch["label"], logits=logits)
        terms = {"label": (values, batch["weight"] if self.case.weighted else None)}
        if self.case.terms == 2:
            terms["size"] = (
                tf.reduce_sum(tf.square(logits), -1),
                batch["weight/other"] if self.case.weighted else None,
            )
        trained = {entry.path: 1e-3 * tf.reduce_sum(entry.variable**2) for entry in self.selection.trained[:2]}
        return Loss(terms, regulariser=trained, metrics={"size": (logits[:, 0], batch["weight"])})

    def share(self, whole: dict[str, Any]) -> dict[str, Any]:
        """This worker's examples of a step."""
        if self.step.replicas is None:
            return whole
        count = len(whole["label"])
        first, last = self.step.replicas.share.bounds(count)
        return {name: value[first:last] for name, value in whole.items()} | {"examples": count}

    def run(self, steps: int) -> tuple[Any, Any, list[float]]:
        """The weights after the steps; the first slots, which after one step are its gradient; and losses with metrics."""
        import numpy as np

        from engine.training import optimizers
        from engine.training.optimizer_state import Slots

        clipped: dict[str, Any] = {"weight_decay": 0.05, "clip_norm": 0.05}
        optimizer = optimizers.AdamW(**clipped) if self.case.optimizer == "adamw" else optimizers.Momentum(**clipped)
        for entry, value in zip(self.selection.variables, self.start, strict=True):
            entry.variable.assign(value)
        self.step.slots = Slots()
        found: list[float] = []
        for number in range(steps):
            given = self.share(batch(number, EXAMPLES[self.case.size]))
            if self.line is not None:
                stored = self.line.prefix(given["image"])
                given = {name: value for name, value in given.items() if name != "image"} | {
                    tensor.key: value for tensor, value in zip(self.line.tensors, stored, strict=True)
                }
            result = self.step(self.selection, given, learning_rate=1e-3, optimizer=optimizer)
            assert not result.skipped, result
            found += [float(result.loss), float(result.grad_norm), float(result.metrics["size"])]
        slots = [next(iter(self.step.slots.values[entry.path].values())) for entry in self.selection.trained]

        def joined(variables: Any) -> Any:
            return np.concatenate([variable.numpy().astype(np.float64).ravel() for variable in variables])

        return joined([entry.variable for entry in self.selection.variables]), joined(slots), found


@functools.cache
def batches(size: int) -> Any:
    import numpy as np

    from engine.data.batches import TrainBatches
    from engine.data.part import Part

    rng = np.random.default_rng(0)
    count = 3 * size
    part = Part(rng.integers(0, 256, (count, 8, 8, 1), np.uint8), rng.integers(0, 4, count), np.arange(count))
    return TrainBatches(part, batch_size=size, seed=3, augment=("flip", "crop", "rotate"))


def batch(number: int, size: int) -> dict[str, Any]:
    """A step's examples: augmented images with seeds; an example in three has all but no weight."""
    import numpy as np

    found = dict(batches(size).at(number))
    index = np.asarray(found["index"])
    weights = {"weight": (0.5 + index % 5) * (index % 3 != 1) + 1e-3, "weight/other": 0.25 + index % 7}
    return found | {name: value.astype(np.float64) for name, value in weights.items()}


def compare(case: Case, sides: dict[Any, Side], strategy: Any) -> dict[str, Any]:
    import numpy as np
    import tensorflow as tf

    def relative(one: Any, other: Any) -> float:
        return float(np.linalg.norm(np.asarray(one) - np.asarray(other)) / np.linalg.norm(other))

    found: dict[str, Any] = {}
    for dtype, steps in ((tf.float32, 1), (tf.float64, 10)):
        pair = []
        for where in (None, strategy):
            shared = case._replace(size="", optimizer="")  # sizes and optimizers share the traces of the loss
            key = (shared, dtype, where is None)
            if key not in sides:
                sides[key] = Side(case, dtype, where)
            sides[key].case = case
            pair.append(sides[key].run(steps))
        (one, gradient, scalars), (split, split_gradient, split_scalars) = pair
        replicated = sides[shared, dtype, False]
        assert replicated.step.replicas is not None
        moved = one - np.concatenate([value.astype(np.float64).ravel() for value in replicated.start])
        assert np.linalg.norm(moved) > 1e-4
        found |= {
            f"gradient_{dtype.name}": relative(split_gradient, gradient),
            f"weights_{dtype.name}": relative(split, one),
            f"scalars_{dtype.name}": relative(split_scalars, scalars),
            "differing": len(replicated.step.replicas.differing()) + found.get("differing", 0),
        }
    return found


def judge(strategy: Any) -> dict[str, Any]:
    """What becomes of steps in which the last example, of the last replica, gives an infinite loss."""
    import numpy as np
    import tensorflow as tf

    from engine.training.precision import LossScale
    from engine.training.step_result import NonFiniteError

    side = Side(Case("even", True, 1, 1, "adamw", model="dense"), tf.float32, strategy)
    step, selection = side.step, side.selection
    assert step.replicas is not None
    good, bad = side.share(batch(0, 6)), batch(1, 6)
    bad["weight"] = np.where(np.arange(6) == 5, np.inf, bad["weight"])
    bad = side.share(bad)
    step.loss_scale, step.nonfinite = LossScale(), "skip"
    results = [step(selection, given, learning_rate=1e-3) for given in (good, bad)]
    before = [entry.variable.numpy() for entry in side.selection.variables]
    results.append(step(selection, bad, learning_rate=1e-3))
    same = all(np.array_equal(entry.variable, old) for entry, old in zip(selection.variables, before, strict=True))
    stopping = [step(selection, good, learning_rate=1e-3, stopping=wish).stopping for wish in (False, True)]
    step.nonfinite = "stop"
    try:
        step(selection, bad, learning_rate=1e-3)
        message = "nothing was raised"
    except NonFiniteError as error:
        message = str(error)
    return {
        "skipped": [result.skipped for result in results],
        "scales": [result.loss_scale for result in results],
        "same": same,
        "differing": len(step.replicas.differing()),
        "stopping": stopping,
        "message": message,
    }


def main() -> None:
    strategy = start(sys.argv[1])
    sides: dict[Any, Side] = {}
    cases = [Case(*fields) for fields in json.loads(sys.argv[2])]
    rows = [compare(case, sides, strategy) for case in cases]
    print(json.dumps({"cases": rows, "judged": judge(strategy)}))


if __name__ == "__main__":
    main()
