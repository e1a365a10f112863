"""What differs between a step in one piece and one in micro-batches is told with the kind of each layer."""

from __future__ import annotations

import keras

from engine import select
from engine.training.microbatch import list_caveats


def test_layers_that_move_statistics_are_told_by_their_real_kind() -> None:
    inputs = keras.Input((4,))
    x = keras.layers.BatchNormalization(name="norm")(inputs)
    x = keras.layers.SpectralNormalization(keras.layers.Dense(3), name="spectral")(x)
    model = keras.Model(inputs, x)
    one, other = list_caveats(select(model, "@all @stats"))
    assert one == (
        "1 BatchNormalization layer(s) in training mode normalise by the moments of a micro-batch, not of the step, and "
        "update their statistics once per micro-batch, not once per step: norm; `!@stats` avoids this"
    )
    assert other == (
        "1 SpectralNormalization layer(s) in training mode update their statistics once per micro-batch, not once per step: "
        "spectral; `!@stats` avoids this"
    )
    assert list_caveats(select(model, "@all !@stats")) == []


def test_replicas_average_statistics_which_synchronised_moments_make_those_of_the_step() -> None:
    inputs = keras.Input((4,))
    selection = select(keras.Model(inputs, keras.layers.BatchNormalization(name="norm")(inputs)), "@all @stats")
    assert list_caveats(selection, part="replica's share") == [
        "1 BatchNormalization layer(s) in training mode normalise by the moments of a replica's share, not of the step, and "
        "take the mean of the statistics of all replicas: norm; `!@stats` or sync_batch_norm avoids this"
    ]
    assert list_caveats(selection, part="replica's share", synchronised=True) == []
