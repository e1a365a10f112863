"""Which groups (``@kernel``, ``@norm``, ...) a variable belongs to, by its path and the type of its layer."""

from __future__ import annotations

import re
from typing import Any

GROUPS = {
    "all": "every variable",
    "none": "no variable",
    "kernel": "weights of dense and convolution layers",
    "bias": "additive terms: bias, *_bias, and beta of norms",
    "norm": "variables of normalisation layers",
    "embedding": "position embeddings, class and register tokens, look-up tables",
    "attention": "variables of attention layers",
    "mlp": "variables of a block's MLP",
    "head": "the classifier: variables under head/, or a Keras model's last layer with weights",
    "stats": "statistics: moving mean and variance",
    "adapters": "variables of adapters (lora, ssf and adapter)",
    "lora": "low-rank adapters",
    "ssf": "scales and shifts of adapters",
}

_NORM_TYPE = re.compile(r"Normalization$|(Layer|Batch|Group|Instance|RMS)_?Norm|Norm$")
_NORM_NAME = re.compile(r"(.*_)?(norm|ln|bn|layer_?norm|batch_?norm|normali[sz]ation)\d*(_\d+)?", re.IGNORECASE)
_KERNEL = re.compile(r"(.*_)?kernel|weights?|w", re.IGNORECASE)
_BIAS = re.compile(r"(.*_)?bias(es)?|beta|b", re.IGNORECASE)
_EMBEDDING = re.compile(r"(.*_)?embeddings?|pos_?embed|(class|cls|mask|dist|register|reg)_?tokens?|cls", re.IGNORECASE)
_ATTENTION = re.compile(r"(.*_)?(attention|attn|mha)(_\d+)?", re.IGNORECASE)
_MLP = re.compile(r"(.*_)?(mlp|ffn|feed_?forward)(_\d+)?", re.IGNORECASE)
_HEAD = re.compile(r"head|classifier|predictions|logits", re.IGNORECASE)
_BLOCK = re.compile(r"(?:^|/)blocks/(\d+)/")


def find_groups(path: str, owner: Any) -> set[str]:
    """Returns the names of a variable's groups, except "head" and "stats", which depend on the whole model.

    ``owner`` is the layer or module that holds it; None in a list of variables.
    """
    *parents, last = re.sub(r"#\d+$", "", path).split("/")
    parent = parents[-1] if parents else ""
    kind = type(owner).__name__ if owner is not None else ""
    found = set()
    if (adapter := _adapter_kind(path, owner)) is not None:  # neither a kernel nor a part of the norm that it adapts
        found |= {"adapters", adapter} & GROUPS.keys()
    elif _NORM_TYPE.search(kind) or _NORM_NAME.fullmatch(parent):
        found.add("norm")
    elif _EMBEDDING.fullmatch(last) or kind.endswith("Embedding"):
        found.add("embedding")
    elif _KERNEL.fullmatch(last):
        found.add("kernel")
    if _BIAS.fullmatch(last):
        found.add("bias")
    if any(_ATTENTION.fullmatch(part) for part in parents):
        found.add("attention")
    if any(_MLP.fullmatch(part) for part in parents):
        found.add("mlp")
    return found


def _adapter_kind(path: str, owner: Any) -> str | None:
    """The kind of the adapter that a variable belongs to: as its module says, or Keras' own lora of a layer."""
    if hasattr(owner, "adapter_kind"):
        return str(owner.adapter_kind)
    return "lora" if hasattr(owner, "lora_rank") and path.endswith(("/lora/down", "/lora/up")) else None


def in_head(path: str) -> bool:
    """Whether the first component of a path is a usual name of a classifier."""
    return _HEAD.fullmatch(path.split("/", 1)[0]) is not None


def block_number(path: str) -> int | None:
    """Returns N of ``blocks/N/`` in a path, or None."""
    match = _BLOCK.search(path)
    return int(match.group(1)) if match else None
