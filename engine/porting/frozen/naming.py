"""Names that say what the weights of a frozen graph are, for proposals: optimisers leave names such as ``Const_53``.

The operation that reads a constant keeps the scope of its layer: ``Const_53``, the filter of
``stem/Conv2d_1/BatchNorm/batchnorm/add_1/conv/Conv2D``, is ``stem/Conv2d_1/kernel``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from engine.porting.frozen.find import FrozenWeight
from engine.porting.frozen.judge import NAMED
from engine.selection.statistics import is_statistic

_WORDS = {
    "kernel": "kernel", "bias": "bias", "scale": "gamma", "offset": "beta", "mean": "moving_mean",
    "variance": "moving_variance", "table": "embeddings", "slope": "alpha",
}  # fmt: skip
_OPERATION = re.compile(
    r"(Conv\dD(BackpropInput)?|DepthwiseConv2dNative|MatMul|BatchMatMul(V\d)?|BiasAdd|FusedBatchNorm(V\d)?|Relu6?|Elu|Selu|"
    r"Sigmoid|Tanh|Softmax|Tensordot|Einsum|Gather(V2)?|Mul|Add(V2)?|convolution|depthwise|batchnorm|add|mul|sub|truediv|conv|"
    r"embedding_lookup)(_\d+)?|separable_conv2d"
)
_FUSED = re.compile(r"(.+)_(weights|bn_offset)")  # as converters name the kernel and the bias of a folded layer
_NORM = re.compile(r"BatchNorm(_\d+)?")


def name_weights(weights: Iterable[FrozenWeight]) -> dict[str, str]:
    """Returns name -> a name that says what the weight is; unique, and the name itself where that says it."""
    weights = list(weights)
    found = {weight.name: _describe(weight) for weight in weights}
    for shorten in (_with_operation, lambda weight: weight.name):
        counts = Counter(found.values())
        clashes = [weight for weight in weights if counts[found[weight.name]] > 1]
        found |= {weight.name: shorten(weight) for weight in clashes if not _speaks(weight.name)}
    return found


def _speaks(name: str) -> bool:
    return NAMED.fullmatch(name) is not None or is_statistic(name)


def _describe(weight: FrozenWeight) -> str:
    word, fused = _WORDS.get(weight.role), _FUSED.fullmatch(weight.name)
    if word is None or not weight.reader or (_speaks(weight.name) and fused is None):
        return weight.name
    scope = (fused[1] if fused is not None else weight.reader).split("/")
    if word == "kernel" and "separable_conv2d" in scope:
        word = "depthwise_kernel" if scope[-1] == "depthwise" else "pointwise_kernel"
    plain = word.endswith(("kernel", "bias"))
    while len(scope) > 1 and (_OPERATION.fullmatch(scope[-1]) or (plain and _NORM.fullmatch(scope[-1]))):
        scope.pop()
    return "/".join([*scope, word])


def _with_operation(weight: FrozenWeight) -> str:
    word = _WORDS.get(weight.role)
    return f"{weight.reader}/{word}" if word is not None and weight.reader else weight.name
