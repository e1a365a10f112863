"""The options of feature caching, checked without TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np

from engine.errors import InputError
from engine.files import PathLike
from engine.text import nearest

Mode = Literal["auto", "off", "require"]
MODES: tuple[Mode, ...] = ("auto", "off", "require")
DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}


class CacheError(InputError):
    """A cache that is required but impossible, or options that contradict each other."""


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """The options of feature caching.

    Attributes:
        mode: "off"; "auto", which caches where that will pay; or "require", which makes it an error if a phase cannot.
        root, budget: the folder of the caches, and the bytes that all in it may take together.
        dtype: the type that features are stored in (``DTYPES``); None stores them as they are computed.
        views: the augmented views to keep of each example; None without augmentation.

    Raises:
        CacheError: an unknown mode or dtype, or a dtype or views with mode "off".
    """

    mode: Mode
    root: PathLike
    dtype: str | None = None
    views: int | None = None
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise CacheError(
                f"cache={self.mode!r} is not a valid mode; expected {', '.join(MODES[:-1])} or {MODES[-1]}"
                f"{nearest(self.mode, MODES)}"
            )
        for name, value in (("dtype", self.dtype), ("views", self.views)):
            if self.mode == "off" and value is not None:
                raise CacheError(f"cache_{name}={value} has no effect: --cache=off caches nothing")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise CacheError(f"cache_dtype={self.dtype!r} is not a valid type; expected {' or '.join(DTYPES)}")
