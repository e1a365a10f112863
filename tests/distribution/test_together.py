"""Work of several workers: all go on or none does, and the error of one is that of all."""

from __future__ import annotations

import pytest
from stand_ins import made_by_all, work_as

from engine.data.part import DataError
from engine.distribution.distribution import Distribution
from engine.distribution.together import PeerError, PeerFailedError, is_known_to_all, is_of_kind, work_together
from engine.errors import InputError


def test_each_worker_has_its_own_result_and_what_all_tell() -> None:
    found = made_by_all(3, lambda d: work_together(d, lambda: (d.worker, object()), tell=lambda made: [made[0]]))
    assert [told for _, told in found] == [[[0], [1], [2]]] * 3
    assert [made[0] for made, _ in found] == [0, 1, 2]


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (DataError("data=a: damaged"), PeerError, "worker 1 (127.0.0.1:1001): data=a: damaged"),
        (RuntimeError("no luck"), PeerFailedError, "worker 1 (127.0.0.1:1001): no luck"),
        (KeyError("x"), PeerFailedError, "worker 1 (127.0.0.1:1001): KeyError: 'x'"),
    ],
)
def test_the_error_of_one_worker_reaches_all_in_its_words(error: Exception, kind: type, text: str) -> None:
    def fail(distribution: Distribution) -> None:
        def work() -> None:
            if distribution.worker == 1:
                raise error

        work_together(distribution, work)

    found = work_as(3, fail)
    assert found[1] is error
    for other in (found[0], found[2]):
        assert isinstance(other, kind)
        assert str(other) == text
    assert all(isinstance(each, Exception) and is_known_to_all(each) for each in found)
    assert [is_of_kind(each, DataError) for each in found] == [isinstance(error, DataError)] * 3  # type: ignore[arg-type]
    assert not is_known_to_all(InputError("its own"))
