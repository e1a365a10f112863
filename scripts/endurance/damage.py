"""Makes damaged bytes from whole ones. The same random numbers make the same damage."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

Damage = Callable[[bytes, random.Random], bytes]


def flip_bit(data: bytes, rng: random.Random) -> bytes:
    return _flipped(data, rng, 1)


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    return _flipped(data, rng, rng.randint(2, 12))


def flip_near_the_start(data: bytes, rng: random.Random) -> bytes:
    return _flipped(data, rng, rng.randint(1, 3), most=96)


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))] if data else data


def cut_the_end(data: bytes, rng: random.Random) -> bytes:
    return data[: max(0, len(data) - rng.randint(1, 32))]


def zero(data: bytes, rng: random.Random) -> bytes:
    start, stop = _span(data, rng)
    return data[:start] + bytes(stop - start) + data[stop:]


def duplicate(data: bytes, rng: random.Random) -> bytes:
    start, stop = _span(data, rng)
    return data[:stop] + data[start:stop] + data[stop:]


def leave_out(data: bytes, rng: random.Random) -> bytes:
    start, stop = _span(data, rng)
    return data[:start] + data[stop:]


def append(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.randint(1, 200))


def swap_blocks(data: bytes, rng: random.Random) -> bytes:
    size = min(rng.choice([16, 64, 512]), len(data) // 2)
    if not size:
        return data
    one, other = sorted(rng.sample(range(0, len(data) - size + 1, size), 2)) if len(data) >= 2 * size else (0, 0)
    middle = data[one + size : other]
    return data[:one] + data[other : other + size] + middle + data[one : one + size] + data[other + size :]


def set_number(data: bytes, rng: random.Random) -> bytes:
    """Writes an extreme number over one that may be a length, an offset or a count."""
    width, letter = rng.choice([(1, "B"), (2, "H"), (4, "I"), (8, "Q")])
    if len(data) < width:
        return data
    at = rng.randrange(min(len(data), rng.choice([64, 512, len(data)])) - width + 1)
    most = (1 << 8 * width) - 1
    value = rng.choice(
        [0, 1, most, most >> 1, (most >> 1) + 1, most - rng.randrange(16), 1 << rng.randrange(8 * width)]
    )
    return data[:at] + struct.pack(rng.choice("<>") + letter, value & most) + data[at + width :]


def raise_number(data: bytes, rng: random.Random) -> bytes:
    """Adds to or multiplies a 4-byte number, so that it stays plausible."""
    if len(data) < 4:
        return data
    at, order = rng.randrange(len(data) - 3), rng.choice("<>")
    (value,) = struct.unpack_from(order + "I", data, at)
    value = (value * rng.choice([2, 3, 1000]) + rng.choice([-1, 0, 1, 4])) & 0xFFFFFFFF
    return data[:at] + struct.pack(order + "I", value) + data[at + 4 :]


def empty(data: bytes, rng: random.Random) -> bytes:
    return rng.choice([b"", b"\0", data[:1], bytes(len(data)), b"\xff" * len(data)])


GENERIC: tuple[Damage, ...] = (
    flip_bit,
    flip_bit,
    flip_bits,
    flip_near_the_start,
    truncate,
    cut_the_end,
    zero,
    duplicate,
    leave_out,
    append,
    swap_blocks,
    set_number,
    set_number,
    raise_number,
    empty,
)


def _flipped(data: bytes, rng: random.Random, count: int, *, most: int | None = None) -> bytes:
    changed = bytearray(data)
    for _ in range(count if data else 0):
        changed[rng.randrange(min(len(data), most or len(data)))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice([1, 4, 16, 64, 512, 4096]))
