"""The names of PyTorch libraries: which rule file is meant by ``timm`` or ``hf``, and what their config.json can say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import InputError
from engine.export import network_configs
from engine.export.network_configs import Context
from engine.models.vit import ViT
from engine.porting.errors import PortError
from engine.porting.outward import Outward, Values
from engine.porting.rules import detect
from engine.porting.rules.language import Rules
from engine.text import join_words

LIBRARIES = ("timm", "hf", "keras")


@dataclass(frozen=True)
class Family:
    """A network in a library.

    Attributes:
        rules: the name of its shipped rule file.
        library: "timm" or "hf".
        config: returns the content of its config.json, or why there is none.
        note: what whoever loads the file there must know.
        under: as for ``Outward``.
    """

    rules: str
    library: str
    config: Callable[[Outward, Context], dict[str, Any] | str]
    note: str = ""
    under: tuple[str, str] = ("", "")


_EPSILON = "the norms have an epsilon of 1e-5 there, and of 1.001e-5 in Keras"
FAMILIES = (
    Family("vit_timm", "timm", network_configs.vit_timm),
    Family(
        "resnet_timm", "timm", network_configs.resnet_timm,
        "timm's and torchvision's own ResNets stride in the second convolution of a block, Keras' in the first: load this "
        f"into a module that strides in the first (names and shapes do not show the difference). Also, {_EPSILON}",
    ),
    Family(
        "mobilenetv2_timm", "timm", network_configs.mobilenetv2_timm,
        'timm builds this network with bn_eps=1e-3 and pad_type="same"; without them it computes something else',
    ),
    Family(
        "efficientnet_timm", "timm", network_configs.efficientnet_timm,
        "this is timm's tf_efficientnet, not its efficientnet, which pads otherwise; images must be scaled outside",
    ),
    Family("vit_hf", "hf", network_configs.vit_hf, under=("vit.", "classifier.")),
    Family(
        "resnet_hf", "hf", network_configs.resnet_hf,
        f"the network needs downsample_in_bottleneck=true, as config.json says; {_EPSILON}",
    ),
    Family(
        "bert_hf", "hf", network_configs.bert_hf,
        "GELU: google-research/bert computes it by tanh (hidden_act=gelu_new in transformers), its first releases by erf (gelu)",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Chosen:
    """The tensors under the names that were asked for; ``family`` is None for Keras' own names and a user's rules."""

    tensors: Outward
    family: Family | None
    keras: bool


def choose_names(
    names: str,
    values: Values,
    *,
    network: Any = None,
    paths: Mapping[str, Sequence[str]] | None = None,
    absent: Mapping[str, str] | None = None,
) -> Chosen:
    """Names variables for a library.

    Args:
        names: "timm", "hf", "keras" (the paths of variables, in Keras' layouts), a rule file, or the name of a shipped one.
        network: the model that has the variables, if there is one.
        paths, absent: as for ``Outward``.

    Raises InputError if no network of the library has these variables, and PortError if the rules do not fit them.
    """
    given: dict[str, Any] = {"paths": paths, "absent": absent}
    if isinstance(network, ViT):
        config = network.config
        given["known"] = {"patch/kernel": (config.width, config.image[2], config.patch, config.patch)}
    if names not in ("timm", "hf"):
        rules = detect.get_rules(detect.OWN if names == "keras" else names)
        family = next((each for each in FAMILIES if each.rules == rules.name.removesuffix(".rules")), None)
        family = family if family is not None and detect.get_rules(family.rules) == rules else None
        under = family.under if family is not None else ("", "")
        return Chosen(Outward(values, rules, under=under, **given), family, keras=rules.name.startswith(detect.OWN))
    if not values.names():
        raise InputError(f"names={names}: there are no variables to name")
    errors: list[tuple[int, PortError]] = []
    found = []
    for family in (each for each in FAMILIES if each.library == names):
        rules = detect.get_rules(family.rules)
        try:
            found.append(Chosen(Outward(values, rules, under=family.under, **given), family, keras=False))
        except PortError as error:
            errors.append((_count_named(values, rules), error))
    if len(found) == 1:
        return found[0]
    known = join_words([each.rules for each in FAMILIES if each.library == names])
    named, nearest = max(errors, key=lambda each: each[0])
    why = f"; the nearest: {nearest}" if 2 * named > len(values.names()) else ""
    raise InputError(
        f"names={names}: no network there that is known here ({known}) has these variables, such as {values.names()[0]}. "
        f"--names=FILE takes rules of your own (VARIABLE <- NAME THERE), and --names=keras the variables' paths{why}"
    )


def _count_named(values: Values, rules: Rules) -> int:
    return sum(any(rule.pattern.fullmatch(path) for rule in rules.rules) for path in values.names())
