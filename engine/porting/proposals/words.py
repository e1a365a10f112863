"""Parses the name of a variable into its words (with synonyms unified), its numbers, and its role in a layer.

``bert/encoder/layer_0/attention/self/query/kernel`` has the role "kernel" in the scope ``bert encoder layer 0
attention self query``, ``W_conv1`` has the role "kernel" in ``conv 1``, and ``bn2.running_var`` has the role
"variance" in ``bn 2``.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from engine.porting import slot_names

Token = str | int

_PIECE = re.compile(
    r"(?i:(?<![a-z])conv[123]d)|\d+x\d+|\d{1,9}|[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[^\W\d_a-zA-Z]+", re.ASCII
)
_LETTERS = re.compile(r"[^\W\d_]+|\d{1,9}")

_SYNONYMS = {
    "conv": "conv1d conv2d conv3d convolution convolutional convolution2d cnn",
    "dense": "fc linear fully_connected fullyconnected mlp_dense innerproduct ip",
    "norm": "ln bn layernorm batchnorm layer_norm batch_norm layer_normalization batch_normalization normalization "
    "batchnormalization layernormalization groupnorm group_norm group_normalization instance_norm "
    "instance_normalization rmsnorm rms_norm normalize",
    "embed": "embedding embeddings emb embedder",
    "token": "word tok wte vocab words tokens",
    "segment": "token_type type_token segments",
    "position": "pos positional positions posembed posemb wpe",
    "cls": "class",
    "attention": "attn att mha multi_head multihead multi_head_attention msa",
    "query": "q queries",
    "key": "k keys",
    "value": "v values",
    "qkv": "in_proj c_attn query_key_value q_k_v",
    "output": "out o outputs outp",
    "project": "proj projection",
    "head": "logits classifier classification predictions prediction pred logit fc_out",
    "layer": "block blocks layers blk unit units stage stages encoderblock",
    "encoder": "enc",
    "decoder": "dec",
    "cross": "encdec crossattention cross_attention encoder_decoder",
    "ffn": "mlp feed_forward feedforward ff ffw",
    "up": "intermediate expand wi",
    "down": "contract wo",
    "pool": "pooler pooling",
    "prelu": "p_re_lu parametric alphas alpha",
    "patch": "patches patchify",
    "shortcut": "downsample skip residual",
    "depthwise": "dw",
    "pointwise": "pw",
    "forward": "fw fwd",
    "backward": "bw bwd",
    "auxiliary": "aux",
    "generator": "gen",
    "discriminator": "disc",
    "layerscale": "layer_scale ls lambda",
    "input": "inputs",
    "recurrent": "hidden hh",
}
_ONE = {tuple(word.split("_")): canonical for canonical, text in _SYNONYMS.items() for word in text.split()}
_LONGEST = max(map(len, _ONE))
_ORDINALS = {
    word: number
    for line in (
        "zero one two three four five six seven eight nine ten",
        "zeroth first second third fourth fifth sixth seventh eighth ninth tenth",
    )
    for number, word in enumerate(line.split())
}

# A name means at most one word of each group; names with different ones are of different things.
_EXCLUSIVE = """
    query key value output, query key value project, qkv query, encoder decoder, self cross, left right,
    forward backward, token position segment, generator discriminator, student teacher, online target, actor critic,
    depthwise pointwise, up down, gate up, before after, pre post, norm conv, norm dense, image text, shortcut conv,
    cls segment, register cls mask, pool token
"""
EXCLUSIVE = tuple(frozenset(words.split()) for words in _EXCLUSIVE.split(","))
# A word that makes a pair unlikely if only one of the two names has it.
_MARKED = "auxiliary teacher student target average shadow old backup copy discriminator critic cross"
MARKED = frozenset(_MARKED.split())

# Words for a kind of layer: a name of these alone does not say which layer is meant and contradicts no other name.
_GENERIC = "conv dense norm embed prelu layer model network net module variable batch separable"
GENERIC = frozenset(_GENERIC.split())

_ROLES = {
    "kernel": "kernel kernels weight weights w filter filters matrix",
    "bias": "bias biases b",
    "gamma": "gamma scale g lambda",
    "beta": "beta offset shift center",
    "mean": "mean avg",
    "variance": "variance var",
    "alpha": "alpha alphas",
    "table": "embeddings embedding table",
}
_ROLE = {word: role for role, words in _ROLES.items() for word in words.split()}
_STATISTIC = {"moving", "running", "population", "pop", "batch"}
NORM_ROLES = frozenset({"gamma", "beta", "mean", "variance"})


class Name(NamedTuple):
    """A parsed name: the scope, in which numbers are integers, without the role and adjectives of statistics.

    ``ends`` are the positions after tokens at which a segment (between slashes or dots) ends. ``role`` is "kernel",
    "bias", "gamma", "beta", "mean", "variance", "alpha", "table", or "" for none of these; ``last`` is as written, in
    lower case.
    """

    tokens: tuple[Token, ...]
    ends: frozenset[int]
    role: str
    last: str


def _pieces(segment: str) -> list[Token]:
    found = _PIECE.findall(segment) or _LETTERS.findall(segment)
    tokens: list[Token] = []
    for piece in found:
        word = piece.lower()
        tokens.append(int(word) if word.isdecimal() and word.isascii() else _ORDINALS.get(word, word))
    return tokens


def without_output(name: str) -> str:
    """Returns the name of a variable without the ``:0`` of its tensor."""
    return name.removesuffix(":0")


@functools.lru_cache(maxsize=1 << 15)
def parse_name(name: str) -> Name:
    """Parses a name into scope and role; any text is a name."""
    name = without_output(name)
    segments = [tokens for part in re.split(r"[/.]+", name) if (tokens := _pieces(part))]
    if not segments:
        return Name((name,) if name else (), frozenset({1}), "", "")
    last = segments.pop()
    role, said, rest = _role_of(last)
    flat: list[Token] = []
    ends = set()
    for tokens in [*segments, rest]:
        flat += tokens
        ends.add(len(flat))
    return Name(tuple(flat), frozenset(ends), role, said)


def _role_of(tokens: list[Token]) -> tuple[str, str, list[Token]]:
    """Returns the role in a last segment, how it was written, and the tokens that remain."""
    for place in (len(tokens) - 1, len(tokens) - 2, 0):  # weights, scale1, W_conv1
        if not 0 <= place < len(tokens) or (0 < place == len(tokens) - 2 and not isinstance(tokens[-1], int)):
            continue
        word = tokens[place]
        role = _ROLE.get(word, "") if isinstance(word, str) else ""
        if not role or (place == 0 and place < len(tokens) - 2 and role in ("table", "mean", "variance")):
            continue
        if place == 0 and len(tokens) == 2 and isinstance(tokens[1], str) and role not in ("kernel", "bias"):
            continue
        rest = tokens[:place] + tokens[place + 1 :]
        if {role, _ROLE.get(str(rest[-1]), "") if rest else ""} == {"kernel", "bias"}:  # bias_weights
            return "bias", str(word), rest[:-1]
        if role in ("mean", "variance") and place and rest[place - 1] in _STATISTIC:
            del rest[place - 1]
        if role == "gamma" and place and rest[place - 1 : place] == ["layer"]:
            rest[place - 1] = "layerscale"
        return role, str(word), rest
    return "", "", tokens


def canonical_words(tokens: tuple[Token, ...]) -> tuple[str, ...]:
    """Returns the words of a scope, each as its canonical synonym, without numbers."""
    return _words(tuple(token if isinstance(token, str) else "" for token in tokens))


@functools.lru_cache(maxsize=1 << 15)
def _words(tokens: tuple[str, ...]) -> tuple[str, ...]:
    found: list[str] = []
    place = 0
    while place < len(tokens):
        for length in range(min(_LONGEST, len(tokens) - place), 0, -1):
            canonical = _ONE.get(tokens[place : place + length])
            if len(tokens[place]) == length == 1 and tokens[place + 1 : place + 2] == ("",):
                canonical = None  # the v of resnet_v1 is not a value
            if canonical is not None or length == 1:
                found.append(canonical or tokens[place])
                place += length
                break
    return tuple(word for word in found if word)


_OTHER_SLOT = re.compile(r"vr|vc|accumulator|accum_grad|accum_var|momentum|velocity|rms|mg|vhat|ema")
COUNTER = re.compile(
    r"(.*[/.])?(beta[12]_power(_\d+)?|global_step|save_counter|num_batches_tracked|iterations?|learning_rate|lr"
    r"|train(ing)?_step|step|loss_scale|good_steps)|optimizer/.*|(.*/)?\.OPTIMIZER_SLOT/.*|_CHECKPOINTABLE_OBJECT_GRAPH"
    r"|(generator|metric)/.*|(.*/)?seed_generator(_state)?"
)


def is_slot(last: str) -> bool:
    """Whether the last component of a name is that of an optimizer slot or a moving average."""
    return last == slot_names.AVERAGE or slot_names.is_v1_slot(last) or _OTHER_SLOT.fullmatch(last) is not None
