"""What TensorFlow calls the variables that training keeps for a weight: optimizer slots and moving averages.

The one list for the reader of old checkpoints, the proposals of rules and the audit of graphs. Each caller decides
what else must hold, such as a variable of the same shape under the name in front.
"""

from __future__ import annotations

import re
from collections.abc import Container

AVERAGE = "ExponentialMovingAverage"  # the default name in tf.train.ExponentialMovingAverage
DEBIASING = ("biased", "local_step")  # what a zero-debiased average keeps beneath its own name
OBJECT_SLOT = "/.OPTIMIZER_SLOT/"  # in the keys of tf.train.Checkpoint

# The slots of tf.compat.v1 optimizers in order of creation: VAR/Adam, VAR/Adam_1 and so on.
V1_SLOTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("Adam", "LazyAdam", "AdamW", "Nadam"), ("m", "v")),
    **dict.fromkeys(("Momentum", "MomentumW"), ("momentum",)),
    "Adagrad": ("accumulator",),
    "Adadelta": ("accum", "accum_update"),
    "Ftrl": ("accumulator", "linear"),  # the first is "accum" there, but "accumulator" in OptimizerV2
    "RMSProp": ("rms", "momentum"),
}
CENTERED_RMSPROP = ("rms", "mg", "momentum")  # RMSProp(centered=True), recognised by its third slot
RMSPROP_OF_V2 = (("rms",), ("rms", "mg"))  # OptimizerV2's without momentum keep no slot for it
SAME_RULE = {"LazyAdam": "Adam", "AdamW": "Adam", "Nadam": "Adam", "MomentumW": "Momentum"}
# The slots of OptimizerV2, and the optimizer that each implies where the scope does not name one.
V2_SLOTS: dict[str, str] = {
    "m": "Adam", "v": "Adam", "vhat": "Adam", "momentum": "Momentum", "rms": "RMSProp", "mg": "RMSProp",
    "accumulator": "Adagrad", "linear": "Ftrl", "accum_grad": "Adadelta", "accum_var": "Adadelta",
}  # fmt: skip
# Also those that only tf.compat.v1 optimizers name so, in the keys of tf.train.Checkpoint and in Frostline's files.
OBJECT_SLOTS = V2_SLOTS | {"accum": "Adadelta", "accum_update": "Adadelta"}
_TELLING = ("linear", "rms")  # a slot beside one of these belongs to its optimizer: Ftrl has an accumulator too
# The slots of OptimizerV2 with the same content as one of another name in TensorFlow 1, whose name is used here.
SAME_SLOT = {"accum_grad": "accum", "accum_var": "accum_update"}
V2_SCOPES = {"adam": "Adam", "sgd": "Momentum", "rmsprop": "RMSProp"} | {
    kind.lower(): kind for kind in ("Adagrad", "Adadelta", "Ftrl", "Nadam", "Adamax")
}
# Scalars that OptimizerV2 keeps below its scope: its hyperparameters, and the state of a loss scale.
V2_STATE = (
    "iter", "iterations", "learning_rate", "decay", "beta_1", "beta_2", "momentum", "rho", "epsilon",
    "beta", "learning_rate_power", "l1_regularization_strength", "l2_regularization_strength",
    "momentum_cache", "schedule_decay", "current_loss_scale", "good_steps",
)  # fmt: skip
# Optimizers of tf.contrib and of well-known programs, whose slots only have to be recognised as such.
_OTHERS = ("AdagradDA", "AdaMax", "LAMB", "LARS", "LARSOptimizer", "Adafactor")

# Adafactor keeps vr and vc, the row and column means of a matrix, instead of v: VAR/Adafactor (tensor2tensor) and
# VAR_slot_v (Mesh TensorFlow).
ADAFACTOR = re.compile(r"(?P<of>.+)(?:/Adafactor(?:_(?P<number>\d+))?|_slot_(?P<slot>v|vr|vc|m))")

OWN_ADAM = re.compile(r"(adam|lamb)_([mv])")  # BERT's AdamW and LAMB, which are not optimizers of tf.compat.v1
_V1_SLOT = re.compile(rf"({'|'.join((*V1_SLOTS, *_OTHERS))}|{OWN_ADAM.pattern})(_\d+)?")
_V2_SLOT = re.compile(rf".+/({'|'.join(V2_SLOTS)})(_\d+)?")
_AVERAGE = re.compile(rf"(.*/)?{AVERAGE}(/({'|'.join(DEBIASING)}))?")


def kind_beside(beside: str, shapes: Container[str]) -> str | None:
    """The optimizer that another slot of a variable tells, in names that are ``beside`` + slot; None if none does.

    Example:
        >>> kind_beside("training/w/", ["training/w/accumulator", "training/w/linear"])
        'Ftrl'
    """
    return next((V2_SLOTS[slot] for slot in _TELLING if beside + slot in shapes), None)


def is_v1_slot(last: str) -> bool:
    """Whether the last component of a name (``Adam_1``, ``adam_m``) is that of a slot of tf.compat.v1."""
    return _V1_SLOT.fullmatch(last) is not None


def is_v2_slot(name: str) -> bool:
    """Whether a whole name ends like that of a slot of OptimizerV2, below some scope."""
    return _V2_SLOT.fullmatch(name) is not None


def is_average(name: str) -> bool:
    """Whether a name is TensorFlow's default name of a moving average, or of what one keeps for its debiasing."""
    return _AVERAGE.fullmatch(name) is not None


def v1_suffixes(slots: tuple[str, ...], kind: str) -> dict[str, str]:
    """Slot -> what an optimizer of tf.compat.v1 appends to the name of its variable.

    Example:
        >>> v1_suffixes(("m", "v"), "Adam")
        {'m': 'Adam', 'v': 'Adam_1'}
    """
    return {slot: f"{kind}_{number}" if number else kind for number, slot in enumerate(slots)}
