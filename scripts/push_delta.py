"""Put what a run trained into an exported model, so that only a delta has to be sent.

--to is an exported SavedModel, of which --out becomes an updated copy; or a TFLite model that was exported with
--updatable, for which --out is an .npz file with the arguments of its load_delta. A delta of another base is refused.
"""

from __future__ import annotations

from absl import flags

from . import cli

F = flags.FLAGS

cli.define_flags(
    __name__,
    {
        "to": "The folder of an exported model, which stays as it is.",
        "delta": "The delta: trained.npz of a run that started from the same weights, or what export --delta_for wrote.",
        "out": "The folder (for a TFLite model, the .npz file) to create; it must not exist.",
        "force_base": "Go on though the model is not the base of the delta.",
    },
    {"force_base": False},
)


def main() -> int:
    from engine.errors import InputError

    for name, what in (("to", "an exported model"), ("delta", "a delta"), ("out", "what to create")):
        if not F[name].value:
            raise InputError(f"{name}=None: expected --{name}=PATH, {what}")
    cli.import_tensorflow(keras=False)
    from engine.export.update import push_delta

    found = push_delta(F.to, F.delta, F.out, force_base=F.force_base)
    print(f"updated: {len(found.paths)} variables")
    print(f"bytes:   {found.sent:,} to send, {found.sent / found.whole:.2%} of the {found.whole:,} of the model")
    print(f"written: {found.out}")
    return cli.DONE


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
