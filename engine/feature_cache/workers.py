"""What the workers of a run agree on about feature caches: one folder, the same missing shards, the same decisions."""

from __future__ import annotations

import contextlib
import pathlib
import secrets
import time
from collections.abc import Sequence

from engine import files
from engine.distribution.distribution import Distribution
from engine.distribution.together import work_together
from engine.feature_cache.options import CacheError
from engine.feature_cache.store import SHARE_IT, Features
from engine.files import PathLike

PATIENCE = 15.0  # seconds until a network's file system shows what another machine has written


def check_shared(distribution: Distribution, root: PathLike) -> None:
    """Raises CacheError, on all workers, unless the folder of caches is the same for all; it is created."""
    folder = pathlib.Path(root)
    mark = folder / f".shared-{secrets.token_hex(8)}"

    def leave() -> str:
        if distribution.is_chief:
            folder.mkdir(parents=True, exist_ok=True)
            files.write_bytes(mark, b"")
        return mark.name

    def find(name: str) -> None:
        until = time.monotonic() + PATIENCE
        while not (folder / name).exists():
            if time.monotonic() > until:
                raise CacheError(
                    f"cache_dir={folder}: {distribution.name(distribution.worker)} has no file there that the chief has "
                    f"written; {SHARE_IT}"
                )
            time.sleep(0.05)

    try:
        _, names = work_together(distribution, leave, tell=lambda name: name)
        work_together(distribution, lambda: find(names[0]))
    finally:
        if distribution.is_chief:
            with contextlib.suppress(OSError):
                mark.unlink(missing_ok=True)


def agree_on_missing(distribution: Distribution, caches: Sequence[Features]) -> None:
    """Makes shards that any worker lacks missing for all, so that their shares are of the same list.

    Raises DisagreementError, on all workers, if they do not mean the same caches.
    """
    if distribution.workers == 1:
        return
    distribution.agree({"features of the cache": [cache.key[:16] for cache in caches]})
    _, told = work_together(distribution, lambda: [cache.missing_shards for cache in caches], tell=lambda found: found)
    for place, cache in enumerate(caches):
        cache.forget({shard for missing in told for shard in missing[place]})
