"""What an exported model is given: images, the tokens of texts, or vectors of numbers; as its user has them, not as the run had them."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from engine.data import Normalise, Part
from engine.data.features import NAME, find_features
from engine.data.part import ArraySpec
from engine.data.tokens import Tokenizer

Given = Mapping[str, Any]
_PAIRS = (
    "where both texts of a pair are cut and the room is odd, the run kept one token more of the first, and tokenizer.json keeps "
    "one more of the second"
)


class Inputs(Protocol):
    """The inputs of an export, each by its name.

    Attributes:
        what: what they are, for messages.
        specs: the spec of a batch of each.
        own: the inputs that the network itself takes, by the names that the run's data have for them; none for one image.
    """

    @property
    def what(self) -> str: ...

    @property
    def specs(self) -> dict[str, tf.TensorSpec]: ...

    @property
    def own(self) -> dict[str, ArraySpec]: ...

    def prepare(self, given: Given) -> Any:
        """What the network takes, in a trace."""

    def check(self, given: Given) -> Given:
        """The same, if the values are those that they should be: others would give nonsense without a word."""

    def read(self, part: Part, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Those of examples, as a user has them."""

    def read_own(self, part: Part, positions: np.ndarray) -> Any:
        """Those of examples as the run's network took them; None for images, which the network's own normalisation makes."""

    def describe(self) -> dict[str, Any]:
        """What export.json says of them."""

    def describe_preparation(self) -> dict[str, Any]:
        """What must be done to them outside, for a network that takes them as ``prepare`` leaves them."""

    def write_files(self, folder: pathlib.Path) -> None:
        """Writes the files without which nobody can make these inputs."""

    def in_float32(self) -> Inputs:
        """The same, prepared in float32 alone."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images float32 [B, height, width, channels] in [0, 1], as ``images``."""

    shape: tuple[int, ...]
    normalise: Normalise
    what: str = "images"

    @property
    def specs(self) -> dict[str, tf.TensorSpec]:
        return {"images": tf.TensorSpec([None, *self.shape], tf.float32, name="images")}

    @property
    def own(self) -> dict[str, ArraySpec]:
        return {}

    def prepare(self, given: Given) -> Any:
        return self.normalise(given["images"])

    def check(self, given: Given) -> Given:
        images = given["images"]
        low, high = tf.reduce_min(images), tf.reduce_max(images)
        inside = (tf.size(images) == 0) | ((low >= -1e-3) & (high <= 1.0 + 1e-3))
        text = "images: expected values from 0 to 1 (divide pixels by 255); they go from, to:"
        with tf.control_dependencies([tf.debugging.Assert(inside, [text, low, high])]):
            return {"images": tf.identity(images)}

    def read(self, part: Part, positions: np.ndarray) -> dict[str, np.ndarray]:
        return {"images": read_images(part, positions)}

    def read_own(self, part: Part, positions: np.ndarray) -> Any:
        return None

    def describe(self) -> dict[str, Any]:
        return {"images": {"shape": list(self.shape), "dtype": "float32", "range": [0.0, 1.0]}}

    def describe_preparation(self) -> dict[str, Any]:
        return asdict(self.normalise) | {"of": "images in [0, 1]: (image - mean) / std, per channel"}

    def write_files(self, folder: pathlib.Path) -> None:
        pass

    def in_float32(self) -> Images:
        return self


@dataclass(frozen=True, kw_only=True, eq=False)
class Texts:
    """The tokens of texts, int32 [B, T], as ``tokens``; of pairs, for a model that has token types, these as ``types``."""

    own: dict[str, ArraySpec]
    tokenizer: Tokenizer
    what: str = "texts"

    @property
    def specs(self) -> dict[str, tf.TensorSpec]:
        return {
            name: tf.TensorSpec([None, *each.shape], tf.as_dtype(each.dtype), name=name)
            for name, each in self.own.items()
        }

    def prepare(self, given: Given) -> Any:
        return dict(given) if len(self.own) > 1 else given["tokens"]

    def check(self, given: Given) -> Given:
        found = {}
        for name, ids in given.items():
            most = len(self.tokenizer) - 1 if name == "tokens" else 1
            low, high = tf.reduce_min(ids), tf.reduce_max(ids)
            inside = (tf.size(ids) == 0) | ((low >= 0) & (high <= most))
            text = f"{name}: expected whole numbers from 0 to {most}, as tokenizer.json makes them; they go from, to:"
            with tf.control_dependencies([tf.debugging.Assert(inside, [text, low, high])]):
                found[name] = tf.identity(ids)
        return found

    def read(self, part: Part, positions: np.ndarray) -> dict[str, np.ndarray]:
        found = part.read(positions)
        return {name: found[name] for name in self.own}

    def read_own(self, part: Part, positions: np.ndarray) -> Any:
        found = self.read(part, positions)
        return found if len(found) > 1 else found["tokens"]

    def describe(self) -> dict[str, Any]:
        pieces = self.tokenizer
        return {
            **{name: {"shape": list(each.shape), "dtype": each.dtype.name} for name, each in self.own.items()},
            "max_tokens": pieces.max_tokens,
            **({"pairs": _PAIRS} if len(self.own) > 1 else {}),
            "tokenizer": {**pieces.settings, "words": len(pieces), "pad": pieces.pad, "files": list(Tokenizer.FILES)},
        }

    def describe_preparation(self) -> dict[str, Any]:
        return {"of": f"nothing: the model takes {' and '.join(self.own)} as {Tokenizer.FILES[-1]} makes them"}

    def write_files(self, folder: pathlib.Path) -> None:
        self.tokenizer.write_files(folder)

    def in_float32(self) -> Texts:
        return self


@dataclass(frozen=True, kw_only=True, eq=False)
class Vectors:
    """Vectors float32 [B, D] as the data have them, as ``features``; they are standardised, and missing numbers filled, inside.

    Attributes:
        name: what the run's data call them.
        size: D.
        columns: the names of the columns; None if they have none.
        moments: the mean and the deviation of each column, float64 [2, D]; None if the run did not standardise them.
        missing: whether NaN is a missing number, which becomes 0 after standardisation, as in the run.
        wide: whether they are standardised in float64, as in the run.
    """

    name: str
    size: int
    columns: tuple[str, ...] | None
    moments: np.ndarray | None
    missing: bool
    wide: bool = True
    what: str = "vectors"

    @property
    def specs(self) -> dict[str, tf.TensorSpec]:
        return {NAME: tf.TensorSpec([None, self.size], tf.float32, name=NAME)}

    @property
    def own(self) -> dict[str, ArraySpec]:
        return {self.name: ArraySpec((self.size,), np.dtype(np.float32))}

    def prepare(self, given: Given) -> Any:
        found = given[NAME]
        if self.moments is not None and self.wide:
            found = tf.cast((tf.cast(found, tf.float64) - self.moments[0]) / self.moments[1], tf.float32)
        elif self.moments is not None:
            # The mean in two parts: what float32 cannot hold of it is not small beside the deviation of every column.
            whole = self.moments[0].astype(np.float32)
            rest = (self.moments[0] - whole).astype(np.float32)
            found = (found - whole - rest) / self.moments[1].astype(np.float32)
        return tf.where(tf.math.is_nan(found), tf.zeros_like(found), found) if self.missing else found

    def check(self, given: Given) -> Given:
        values = given[NAME]
        bad = tf.math.is_inf(values) if self.missing else ~tf.math.is_finite(values)
        rule = "finite numbers, or NaN for a missing one" if self.missing else "finite numbers"
        reason = "" if self.missing else ", since the run read no missing ones (--nan=zero of finetune)"
        text = f"features: expected {rule}{reason}; others, in columns:"
        columns = tf.reduce_any(bad, axis=0)
        with tf.control_dependencies([tf.debugging.Assert(~tf.reduce_any(bad), [text, tf.where(columns)[:, 0]])]):
            return {NAME: tf.identity(values)}

    def read(self, part: Part, positions: np.ndarray) -> dict[str, np.ndarray]:
        found = find_features(part)
        return {NAME: self.read_own(part, positions) if found is None else found.raw[part.index[positions]]}

    def read_own(self, part: Part, positions: np.ndarray) -> Any:
        return part.read(positions)[self.name].astype(np.float32, copy=False)

    def describe(self) -> dict[str, Any]:
        moments = self.moments
        return {
            NAME: {
                "shape": [self.size],
                "dtype": "float32",
                "columns": None if self.columns is None else list(self.columns),
                "standardised": None
                if moments is None
                else dict(zip(("mean", "deviation"), moments.tolist(), strict=True)),
                "missing": "zero" if self.missing else "refused",
            }
        }

    def describe_preparation(self) -> dict[str, Any]:
        scaled = "(feature - mean) / std, per column" if self.moments is not None else "nothing"
        filled = "; then 0 in place of NaN, a missing number" if self.missing else ""
        moments = {} if self.moments is None else dict(zip(("mean", "std"), self.moments.tolist(), strict=True))
        return {**moments, "of": f"features: {scaled}{filled}"}

    def write_files(self, folder: pathlib.Path) -> None:
        pass

    def in_float32(self) -> Vectors:
        return replace(self, wide=False)


def read_images(part: Part, positions: np.ndarray) -> np.ndarray:
    """The images at these positions as float32 in [0, 1], as ``Normalise`` converts them."""
    images = part.read(positions)["image"]
    return images.astype(np.float32) / np.float32(255.0) if images.dtype == np.uint8 else images
