"""The text form of adapters, such as ``lora:rank=8 @attention; ssf @norm``, read without TensorFlow."""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.errors import InputError
from engine.selection.filters import FilterError, Ordered, parse_filter
from engine.text import cut, join_words, nearest, parse_number

# Kind -> its options, the required one first
OPTIONS = {"lora": ("rank", "alpha"), "ssf": (), "adapter": ("size",)}
# Kind -> the layers that it can adapt, for messages
LAYERS = {
    "lora": "dense and convolution layers",
    "ssf": "dense, convolution and depthwise layers, and layers that normalise",
    "adapter": "dense and convolution layers",
}
_MOST = 65_536


class AdapterError(InputError):
    """Adapters that cannot be read, or do not fit a model."""


@dataclass(frozen=True)
class Adapter:
    """One kind of adapter, and the filter of the kernels (for ``ssf`` also the norms) that get it.

    Attributes:
        kind: "lora", "ssf" or "adapter".
        size: the rank of ``lora``, the width of the bottleneck of ``adapter``; 0 for ``ssf``.
        alpha: ``lora`` adds alpha / rank times its product.
    """

    kind: str
    filter: Ordered
    size: int = 0
    alpha: float = 0.0

    def __str__(self) -> str:
        options = {"lora": f":rank={self.size},alpha={self.alpha:g}", "adapter": f":size={self.size}"}.get(
            self.kind, ""
        )
        return f"{self.kind}{options} {self.filter}"


def parse_adapters(text: str) -> tuple[Adapter, ...]:
    """Reads ``KIND[:option=value,...] FILTER``, several of them separated by ``;``.

    Raises AdapterError for an unknown kind or option, a value out of range, or a filter that is missing or not valid.

    Example:
        >>> [str(adapter) for adapter in parse_adapters("lora:rank=8 @attention; ssf @norm")]
        ['lora:rank=8,alpha=8 @attention', 'ssf @norm']
    """
    found = []
    for part in text.split(";"):
        try:
            found.append(_parse_one(part.strip()))
        except InputError as error:
            raise AdapterError(f"adapt={cut(text)!r}: {error}") from None
    return tuple(found)


def _parse_one(text: str) -> Adapter:
    word, _, rest = text.partition(" ")
    kind, colon, options = word.partition(":")
    if kind not in OPTIONS:
        what = f"`{cut(kind)}` is not a kind of adapter" if kind else "a part is empty"
        raise AdapterError(
            f"{what}; expected KIND FILTER with KIND one of {join_words(_forms())}{nearest(kind, list(OPTIONS))}"
        )
    given = _read_options(kind, options) if colon else {}
    if OPTIONS[kind] and OPTIONS[kind][0] not in given:
        raise AdapterError(f"{kind} needs its {OPTIONS[kind][0]}, as in `{kind}:{OPTIONS[kind][0]}=8 @attention`")
    size = int(given.get("rank", given.get("size", 0)))
    if not rest.strip():
        raise AdapterError(
            f"`{cut(word)}` has no filter; expected one that names the kernels to adapt, such as `{cut(word)} @attention`"
        )
    try:
        chosen = parse_filter(rest)
    except FilterError as error:
        raise AdapterError(f"the filter of `{cut(word)}`: {error}") from None
    return Adapter(kind, chosen, size, given.get("alpha", float(size) if kind == "lora" else 0.0))


def _read_options(kind: str, text: str) -> dict[str, float]:
    known, found = OPTIONS[kind], dict[str, float]()
    for option in text.split(","):
        name, _, value = option.partition("=")
        if name not in known:
            expected = f"expected {join_words(known)}" if known else f"{kind} has none"
            raise AdapterError(f"`{cut(option)}` is not an option of {kind}; {expected}{nearest(name, known)}")
        if name in found:
            raise AdapterError(f"{name} of {kind} is given twice")
        if name == "alpha":
            number = parse_number(value)
            if number is None or not 0 < number < 1e6:
                raise AdapterError(f"alpha={cut(value)!r} is not a number above 0 and below 1,000,000")
            found[name] = number
        else:
            if not re.fullmatch(r"\d{1,6}", value) or not 1 <= int(value) <= _MOST:
                raise AdapterError(f"{name}={cut(value)!r} is not a whole number from 1 to {_MOST:,}")
            found[name] = int(value)
    return found


def _forms() -> list[str]:
    return [f"{kind}:{options[0]}=N" if options else kind for kind, options in OPTIONS.items()]
