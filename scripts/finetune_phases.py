"""What finetune trains, phase by phase, as the flags say."""

from __future__ import annotations

import dataclasses

from absl import flags

from engine.errors import InputError
from engine.selection import filters, selection
from engine.selection.variables import ModelVariables
from engine.training import optimizers, phases, schedules
from engine.training.loop import Stage
from engine.training.phases import Phase

F = flags.FLAGS


def stages(variables: ModelVariables, chosen: list[Phase], statistics: selection.Statistics) -> list[Stage]:
    """Phases with everything resolved: selections, optimizers, schedules."""
    names = ("momentum", "nesterov", "beta1", "beta2", "epsilon", "weight_decay", "layer_decay", "clip_norm")
    given = {name: F[name].value for name in names}
    if F.decay is not None:
        given["decay"] = filters.parse_filter(F.decay)
        selection.matching(variables, given["decay"])
    base = optimizers.by_name(F.optimizer, **{name: value for name, value in given.items() if value is not None})
    found = []
    for phase in chosen:
        own = {
            n: getattr(phase, n) for n in ("weight_decay", "layer_decay", "clip_norm") if getattr(phase, n) is not None
        }
        try:
            selected = selection.select(variables, phase.train, statistics=statistics)
        except filters.FilterError as error:
            raise filters.FilterError(f"phase {phase.name!r}, train='{phase.train}': {error}") from None
        found.append(
            Stage(
                phase=phase,
                selection=selected,
                optimizer=dataclasses.replace(base, **own),
                schedule=schedules.parse(phase.schedule or F.schedule),
                learning_rate=phase.learning_rate or F.learning_rate,
            )
        )
    return found


def asked(upper: str, per_epoch: int) -> list[Phase]:
    """--phase, else --train as one phase, else the two default phases."""
    length = {"steps": F.steps, "epochs": F.epochs if F.steps or F.epochs else 8.0}
    if F.phase:
        found = [phases.parse(text, train=F.train, **length) for text in F.phase]
        if F.train is not None and all("train=" in text for text in F.phase):
            raise InputError(f"train={F.train!r}: each --phase has a train= of its own")
        for name in ("steps", "epochs"):
            if F[name].value is not None and all(
                any(f"{k}=" in t for k in ("steps", "epochs", "until")) for t in F.phase
            ):
                raise InputError(f"{name}={F[name].value}: each --phase says how long it is")
        if len({phase.name for phase in found}) < len(found):
            raise InputError("phase: two phases have the same name; name= tells them apart")
        return found
    if F.train is not None:
        return [Phase(name="train", train=F.train, **length)]
    steps = F.steps or max(1, round(length["epochs"] * per_epoch))
    head = max(1, steps // 4)
    found = [Phase(name="head", train="@head", steps=head, learning_rate=4 * F.learning_rate)]
    if steps > head:
        rate, train = 2 * F.learning_rate, f"{upper} @head".strip()  # in this order: upper layers may hold the head
        found.append(Phase(name="upper", train=train, steps=steps - head, learning_rate=rate))
    return found


def top(blocks: int, per_epoch: int) -> Phase:
    """The phase that trains the top blocks and the head, of --plan=depth."""
    length = {"steps": F.steps} if F.steps else {"epochs": F.epochs or 8.0}
    return Phase(name=f"top_{blocks}", train=f"@blocks[-{blocks}:] @head", **length)  # type: ignore[arg-type]
