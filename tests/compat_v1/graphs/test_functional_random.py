"""Random programs of loops, conditions and arrays within each other, converted: the same values and gradients."""

from __future__ import annotations

import random as dice
from typing import Any

import pytest
import tensorflow as tf
from old_graphs import Old, assert_same, cond, random, variable

COUNT = 24


class Program:
    """A random program on vectors of three numbers: its pieces read what was computed around them."""

    def __init__(self, seed: int) -> None:
        self.rolls = dice.Random(seed)

    def build(self, p: Any, q: Any, x: Any) -> Any:
        self.conditions = [p, q]
        self.weights = [variable("w", 3, resource=True), variable("v", 3, resource=False, seed=7)]
        return [self.piece([x, *self.weights], 3) for _ in range(2)]

    def pick(self, known: list[Any]) -> Any:
        return self.rolls.choice(known)

    def piece(self, known: list[Any], depth: int) -> Any:
        kinds = ["plain", "plain", *(["cond", "cond", "loop", "loop", "array", "several"] if depth else [])]
        kind = self.rolls.choice(kinds)
        if kind == "plain":
            return self.plain(known)
        return getattr(self, kind)(known, depth - 1)

    def plain(self, known: list[Any]) -> Any:
        first, second = tf.convert_to_tensor(self.pick(known)), tf.convert_to_tensor(self.pick(known))
        kind = self.rolls.randrange(6)
        if kind == 0:
            return tf.sin(first)
        if kind == 1:
            return tf.tanh(first * second)
        if kind == 2:
            return first + 0.5
        if kind == 3:
            return first - second
        if kind == 4:
            with tf.control_dependencies([second]):
                return tf.identity(first)
        return tf.stop_gradient(first) * second if self.rolls.random() < 0.3 else first

    def condition(self, known: list[Any]) -> Any:
        chosen = self.rolls.choice([*self.conditions, "computed"])
        return tf.reduce_sum(self.pick(known)) > 0.1 if chosen == "computed" else chosen

    def cond(self, known: list[Any], depth: int) -> Any:
        condition = self.condition(known)
        return cond(condition, lambda: self.branch(known, depth), lambda: self.branch(known, depth))

    def branch(self, known: list[Any], depth: int) -> Any:
        if self.rolls.random() < 0.15:
            return tf.constant([1.0, 2.0, 3.0], tf.float64)
        return tf.convert_to_tensor(self.chain(known, depth))

    def chain(self, known: list[Any], depth: int) -> Any:
        known = list(known)
        for _ in range(self.rolls.choice([1, 2, 2])):
            known.append(self.piece(known, depth))
        return known[-1]

    def several(self, known: list[Any], depth: int) -> Any:
        """A condition with three results, of which one may not be used, and one may be passed through."""

        def side() -> list[Any]:
            first = self.branch(known, depth)
            return [first, tf.convert_to_tensor(self.pick([*known, first])), self.branch([*known, first], 0)]

        results = cond(self.condition(known), side, side)
        return self.piece([*known, *self.rolls.sample(results, 2)], 0)

    def loop(self, known: list[Any], depth: int) -> Any:
        count = self.rolls.choice([0, 1, 2, 3])
        first = [tf.convert_to_tensor(self.pick(known)) for _ in range(2)]

        def body(i: Any, a: Any, b: Any) -> Any:
            new = self.chain([*known, a, b], depth)
            return i + 1, new, self.pick([a, b, new])

        def goes_on(i: Any, a: Any, b: Any) -> Any:
            return tf.logical_and(i < count, tf.reduce_sum(a) < 50.0) if depth % 2 else i < count

        _, a, b = tf.while_loop(goes_on, body, (0, *first))
        return self.pick([a, a + b])

    def array(self, known: list[Any], depth: int) -> Any:
        read = tf.TensorArray(tf.float64, 3).unstack(tf.stack([self.pick(known) for _ in range(3)]))
        written = tf.TensorArray(tf.float64, 3, element_shape=[3])

        def body(i: Any, a: Any, array: Any) -> Any:
            new = self.chain([*known, a, read.read(i)], depth)
            return i + 1, self.pick([a, new]), array.write(i, new)

        first = tf.convert_to_tensor(self.pick(known))
        _, a, array = tf.while_loop(lambda i, *rest: i < 3, body, (0, first, written))
        return self.pick([tf.reduce_sum(array.stack(), 0), array.stack()[1] + a])


SEEDS = [pytest.param(seed, marks=pytest.mark.slow if seed else ()) for seed in range(COUNT)]


@pytest.mark.parametrize("seed", SEEDS)
def test_random_programs(seed: int) -> None:
    sides = [(True, False), (False, True)]
    program = Program(seed)
    old = Old(program.build, *({"p": p, "q": q, "x": random(3, seed=seed)} for p, q in sides))
    assert_same(old)
