"""``--precision=auto``: float32, or mixed_bfloat16 where the device and the model are faster with it.

A product shows what the hardware can do, and steps of the model itself whether it can use that: depthwise convolutions, for
example, can be slower in bfloat16 where products are faster. Measuring leaves no trace in the run.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.devices import Device, bfloat16_instructions
from engine.errors import InputError
from engine.training.precision import AUTO
from engine.training.product_speed import ProductSpeed, clock, measure_products

CANDIDATES = ("float32", "mixed_bfloat16")
LEAST_PRODUCT, LEAST_STEP = 1.5, 1.1  # how many times as fast bfloat16 must be; below, it is not worth its rounding
_STEPS = 3

# Returns, for a precision, a function that trains one step and waits for it.
StepMaker = Callable[[str], Callable[[], Any]]


@dataclass(frozen=True, kw_only=True)
class PrecisionChoice:
    """The precision of a run, and why.

    Attributes:
        used: the name of the precision.
        reason: a sentence, for people.
        products: floating-point operations per second of products by dtype, on a CPU for each core; None if they were not
            measured.
        step_seconds: seconds of a step of the model by precision, on a CPU those of all cores; None if none was timed.
    """

    used: str
    reason: str
    products: Mapping[str, float] | None = None
    step_seconds: Mapping[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """What run.json and checkpoints record."""
        figures = [None if each is None else dict(each) for each in (self.products, self.step_seconds)]
        return {"used": self.used, "reason": self.reason, "products": figures[0], "step_seconds": figures[1]}


def choose_precision(products: ProductSpeed, steps: Mapping[str, float] | None) -> tuple[str, str]:
    """The precision, and the reason, for the speed of products and seconds of a step by precision.

    ``steps`` is None where none was timed, because products alone decide.

    Example:
        >>> choose_precision(ProductSpeed(float32=1e11, bfloat16=4e11), {"float32": 0.49, "mixed_bfloat16": 0.60})[0]
        'float32'
        >>> choose_precision(ProductSpeed(float32=1e11, bfloat16=4e11), {"float32": 0.49, "mixed_bfloat16": 0.25})[0]
        'mixed_bfloat16'
    """
    if not products.ratio >= LEAST_PRODUCT:
        return "float32", f"{products.text()}, and mixed_bfloat16 needs {LEAST_PRODUCT} times"
    if steps is None:
        return "float32", f"{products.text()}, but no step was timed"
    narrow, wide = steps["mixed_bfloat16"], steps["float32"]
    figures = (
        f"{products.text()}, and a step of the model takes {1e3 * narrow:.1f} ms{' of all cores' if products.cores else ''} in mixed_bfloat16 and "
        f"{1e3 * wide:.1f} ms in float32"
    )
    if wide >= LEAST_STEP * narrow:
        return "mixed_bfloat16", f"{figures}, which saves {1 - narrow / wide:.0%}"
    return "float32", f"{figures}; mixed_bfloat16 must be {LEAST_STEP} times as fast to be taken"


def decide_precision(asked: str, device: Device, make_step: StepMaker) -> PrecisionChoice:
    """The precision of a run that asks for this one. Only ``auto`` times steps, and only where products are fast enough."""
    if asked not in (AUTO, *CANDIDATES):
        return PrecisionChoice(used=asked, reason="as asked")
    products = measure_products(device.kind)
    figures = {"float32": products.float32, "bfloat16": products.bfloat16}
    if asked != AUTO:
        return PrecisionChoice(used=asked, reason=_advise(asked, products, device), products=figures)
    seconds = None
    if products.ratio >= LEAST_PRODUCT:
        try:
            seconds = {name: _time_apart(make_step, name, device) for name in CANDIDATES}
        except InputError as error:  # of a model that decides its precision itself; any other one is found again
            return PrecisionChoice(used="float32", reason=f"no step in mixed_bfloat16: {error}", products=figures)
    used, reason = choose_precision(products, seconds)
    if seconds is None:
        reason += _explain_instructions(device)
    return PrecisionChoice(used=used, reason=reason, products=figures, step_seconds=seconds)


def time_step(step: Callable[[], Any], now: Callable[[], float]) -> float:
    """The seconds of a step by a clock: the least of some, after one that compiles."""
    step()
    seconds = []
    for _ in range(_STEPS):
        start = now()
        step()
        seconds.append(now() - start)
    return min(seconds)


def _time_apart(make_step: StepMaker, name: str, device: Device) -> float:
    """The seconds of a step whose model is gone before another one is built."""
    try:
        return time_step(make_step(name), clock(device.kind))
    finally:
        gc.collect()


def _advise(asked: str, products: ProductSpeed, device: Device) -> str:
    """What ``auto`` would do, as far as that is known without steps of the model."""
    if products.ratio < LEAST_PRODUCT:
        other = "float32 too" if asked == "float32" else "float32"
        return f"{products.text()}{_explain_instructions(device)}; --precision=auto would choose {other}"
    saved = 1 - 1 / products.ratio
    return (
        f"{products.text()}; --precision=auto would time steps of the model and choose by them; what products take of a "
        f"step, bfloat16 shortens by {saved:.0%}"
    )


def _explain_instructions(device: Device) -> str:
    """Why a processor is slow in bfloat16, where that is why."""
    lacking = device.kind == "cpu" and not bfloat16_instructions()
    return "; the processor has no bfloat16 instructions" if lacking else ""
