"""Builds ``bert:DIR``: an encoder with the sizes, the vocabulary and the weights of a folder of BERT, MiniLM or DistilBERT.

The folder has ``config.json`` (transformers) or ``bert_config.json`` (google-research/bert), ``vocab.txt``, and usually
``model.safetensors`` or a checkpoint of TensorFlow 1.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from engine.data import Normalise
from engine.data.tokens import TokenizerFiles
from engine.errors import FileError
from engine.models import bert
from engine.models.bert_head import find_own_head, load_with_head
from engine.models.spec import Model, ModelSpecError, Request, parse_number
from engine.porting.errors import PortError
from engine.reading import check_memory, read_json
from engine.text import join_words, nearest

_CONFIGS = ("config.json", "bert_config.json")
_LARGEST = 1 << 20  # bytes of a config
_MOST = 1 << 24  # of any size in a config: a thousand times that of real models
_EXACT, _TANH = ("gelu", "gelu_python"), ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")
# Of each size: what it is called in BERT and in DistilBERT.
_SIZES = {
    "vocabulary": ("vocab_size", "vocab_size"),
    "width": ("hidden_size", "dim"),
    "depth": ("num_hidden_layers", "n_layers"),
    "heads": ("num_attention_heads", "n_heads"),
    "hidden": ("intermediate_size", "hidden_dim"),
    "positions": ("max_position_embeddings", "max_position_embeddings"),
}


@dataclass(frozen=True)
class Folder:
    """A folder with a model: its config file, the sizes in it, and where its GELU and its padding are decided."""

    path: pathlib.Path
    config: pathlib.Path
    sizes: Mapping[str, int]
    types: int
    pad: int
    norm_epsilon: float
    gelu: str
    dropout: float

    @property
    def tokenizer(self) -> TokenizerFiles:
        return TokenizerFiles(
            folder=self.path,
            rows=self.sizes["vocabulary"],
            positions=self.sizes["positions"],
            pad=self.pad,
            types=self.types > 1,
        )


def build_bert(request: Request) -> Model:
    """Builds ``bert:DIR``; ModelSpecError for a folder, a config or an option that is not valid, or data that are not tokens."""
    folder = read_folder(request.spec, request.name)
    settings: dict[str, Any] = {"gelu": folder.gelu, **folder.sizes}
    head: pathlib.Path | None = None
    for option, value in request.options.items():
        if option == "pool" and value in bert.POOLS:
            settings["pool"] = value
        elif option == "gelu" and value in ("exact", "tanh"):
            settings["gelu"] = value
        elif (option, value) == ("head", "own"):
            head, settings["pool"] = _own_head(request, folder.path)
        elif option == "dropout":
            settings["dropout"] = parse_number(request.spec, option, value, 0.0, 0.99)
        else:
            known = [
                *(f"pool={pool}" for pool in bert.POOLS),
                "gelu=exact",
                "gelu=tanh",
                "head=own",
                "dropout=R",
                "classes=N",
            ]
            written = f"{option}={value}" if value else option
            raise ModelSpecError(
                f"model={request.spec!r}: `{written}` is not an option of an encoder; expected one of {', '.join(known)}"
                f"{nearest(written, known)}"
            )
    _check_tokens(request, folder)
    config = bert.Config(
        classes=request.outputs,
        types=folder.types,
        pad=folder.pad,
        norm_epsilon=folder.norm_epsilon,
        **settings,
    )
    network = bert.Bert(config, seed=request.seed, dtype=request.dtype, compute=request.compute)
    weights = _find_weights(folder.path)
    return Model(
        request.spec,
        network,
        request.outputs,
        Normalise(),
        images_chosen=True,
        upper=f"@blocks[-1:]{' pooler/.*' if config.pool == 'pooler' else ''}",
        shipped_weights=weights,
        shipped_for=f"the network that {folder.config} describes",
        notes=_describe(config, folder),
        load=_choose_load(network, folder.path, weights, head),
        own_file=None if head is None else str(folder.config),
        draw_inputs=lambda rng: tf.constant(rng.integers(0, config.vocabulary, (2, *request.image_shape)), tf.int32),
    )


def read_folder(spec: str, name: str) -> Folder:
    """Reads a folder's config; raises ModelSpecError if there is none, or it is of a network that is not built here."""
    path = pathlib.Path(name)
    file = next((path / each for each in _CONFIGS if (path / each).is_file()), None)
    if not name or file is None:
        what = f"{path} is not a folder" if name and not path.is_dir() else f"it has neither {' nor '.join(_CONFIGS)}"
        raise ModelSpecError(
            f"model={spec!r}: expected bert:DIR, the folder of a model of BERT, MiniLM or DistilBERT"
            + (f"; {what}" if name else "")
        )
    try:
        given = read_json(file, _LARGEST)
    except FileError as error:
        raise ModelSpecError(f"model={spec!r}: {error}") from None
    if not isinstance(given, dict):
        raise ModelSpecError(f"model={spec!r}: {file} is not a JSON object")
    kind = given.get("model_type", "distilbert" if "dim" in given else "bert")
    if kind not in ("bert", "distilbert"):
        raise ModelSpecError(f"model={spec!r}: {file} describes a {kind!r}; expected bert or distilbert")
    distilled = kind == "distilbert"
    sizes = {size: _whole(spec, file, given, names[distilled]) for size, names in _SIZES.items()}
    if sizes["width"] % sizes["heads"]:
        raise ModelSpecError(
            f"model={spec!r}: {file}: {sizes['heads']} heads do not divide a width of {sizes['width']}"
        )
    for key, wanted in (
        ("position_embedding_type", "absolute"),
        ("is_decoder", False),
        ("embedding_size", sizes["width"]),
    ):
        if given.get(key, wanted) != wanted:
            raise ModelSpecError(f"model={spec!r}: {file}: {key} is {given[key]!r}; only {wanted!r} is built here")
    per_block = 4 * sizes["width"] ** 2 + 2 * sizes["width"] * sizes["hidden"]
    tables = (sizes["vocabulary"] + sizes["positions"]) * sizes["width"]
    try:
        check_memory(file, 4 * (tables + sizes["depth"] * per_block), "the model that it describes")
    except FileError as error:
        raise ModelSpecError(f"model={spec!r}: {error}") from None
    return Folder(
        path,
        file,
        sizes,
        0 if distilled else _whole(spec, file, given, "type_vocab_size", 2),
        _whole(spec, file, given, "pad_token_id", 0, least=0),
        1e-12 if distilled else _number(spec, file, given, "layer_norm_eps", 1e-12),
        _find_gelu(spec, file, given, "activation" if distilled else "hidden_act"),
        _number(spec, file, given, "dropout" if distilled else "hidden_dropout_prob", 0.0),
    )


def _whole(
    spec: str, file: pathlib.Path, given: Mapping[str, Any], key: str, default: int | None = None, *, least: int = 1
) -> int:
    value = given.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MOST:
        raise ModelSpecError(
            f"model={spec!r}: {file}: {key} is {value!r}; expected a whole number from {least} to {_MOST:,}"
        )
    return value


def _number(spec: str, file: pathlib.Path, given: Mapping[str, Any], key: str, default: float) -> float:
    value = given.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ModelSpecError(f"model={spec!r}: {file}: {key} is {value!r}; expected a number from 0 to below 1")
    return float(value)


def _find_gelu(spec: str, file: pathlib.Path, given: Mapping[str, Any], key: str) -> str:
    """Which GELU a config means: google-research/bert computes what it calls ``gelu`` with tanh."""
    name = given.get(key, "gelu")
    if name in _TANH or (name == "gelu" and file.name == _CONFIGS[1]):
        return "tanh"
    if name in _EXACT:
        return "exact"
    known = ", ".join((*_EXACT, *_TANH))
    raise ModelSpecError(f"model={spec!r}: {file}: {key} is {name!r}; expected one of {known}")


def _check_tokens(request: Request, folder: Folder) -> None:
    """Raises ModelSpecError unless an example is a row of tokens, no longer than the table of positions."""
    shape = tuple(request.image_shape)
    if len(shape) != 1:
        raise ModelSpecError(
            f"model={request.spec!r} reads texts, but an example of these data has shape {list(shape)}; expected --data=text:PATH"
        )
    if shape[0] > folder.sizes["positions"]:
        raise ModelSpecError(
            f"model={request.spec!r}: {shape[0]} tokens for an example; the model has {folder.sizes['positions']} positions"
        )


def _find_weights(path: pathlib.Path) -> pathlib.Path | None:
    """The weights in a folder: ``model.safetensors``, or the only checkpoint of TensorFlow."""
    if (file := path / "model.safetensors").is_file():
        return file
    found = sorted(path.glob("*.index"))
    return found[0].with_suffix("") if len(found) == 1 else None


def _own_head(request: Request, path: pathlib.Path) -> tuple[pathlib.Path, str]:
    """The file with the folder's head, and what that reads; ModelSpecError if the option ``pool`` says otherwise."""
    file, pool = find_own_head(request.spec, path)
    if pool not in bert.POOLS:
        raise ModelSpecError(f"model={request.spec!r}: {file} does not say what its head reads; expected {bert.POOLS}")
    if request.options.get("pool", pool) != pool:
        raise ModelSpecError(
            f"model={request.spec!r}: the head in {file.name} was trained on pool={pool}; leave out pool, or head=own"
        )
    return file, pool


def _choose_load(
    network: Any, path: pathlib.Path, weights: pathlib.Path | None, head: pathlib.Path | None
) -> Callable[[str], str | None] | None:
    """What loads ``auto`` where the rules for the file do not do it alone."""
    if weights is None:
        return _refuse_auto(path)
    return None if head is None else load_with_head(network, weights, head)


def _refuse_auto(path: pathlib.Path) -> Callable[[str], str | None]:
    def load(weights: str) -> str | None:
        if weights != "auto":
            return None
        pickled = (path / "pytorch_model.bin").is_file()
        hint = (
            " (pytorch_model.bin is a pickle, which is not read; transformers saves it as safetensors)"
            if pickled
            else ""
        )
        raise PortError(
            f"weights='auto': {path} has no model.safetensors and not one checkpoint of TensorFlow{hint}; --weights=FILE loads "
            "another file, and --weights=none starts from random weights (--train=@all then trains all of them)"
        )

    return load


def _describe(config: bert.Config, folder: Folder) -> tuple[str, ...]:
    """What was decided: the pooling, the kind of GELU where names do not tell, and that dropout is off."""
    pools = {
        "mean": "the mean of the tokens",
        "cls": "the first token",
        "pooler": "the first token after the pooler",
    }
    others = join_words(f"pool={pool}" for pool in bert.POOLS if pool != config.pool)
    notes = [f"the head reads {pools[config.pool]}; {others} read others"]
    if folder.config.name == _CONFIGS[1] and config.gelu == folder.gelu == "tanh":
        notes.append(f"its GELU is computed with tanh, as {_CONFIGS[1]} means; gelu=exact changes this")
    if folder.dropout and not config.dropout:
        notes.append(
            f"{folder.config.name} has dropout {folder.dropout:g}, which is off here; dropout={folder.dropout:g} turns it on"
        )
    return tuple(notes)
