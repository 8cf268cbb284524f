"""Where the random numbers of a bridge's calls begin."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from gradbridge.forks import fork_safe_lock
from gradbridge.layout import Array

#: Held while a call is counted: of all sources, so that one is copied and pickled as it is.
_counting = fork_safe_lock()


class NoiseSource:
    """Seeds for calls, all from one.

    Args:
        seed: the bridge's.
        kind: ``"frozen"`` (the same always), ``"per_params"`` or ``"per_call"``.
    """

    def __init__(self, seed: int, kind: str) -> None:
        self._seed, self._kind = seed, kind
        self._calls = 0

    @property
    def draw(self) -> Callable[[Array], int] | None:
        """params ↦ seed of a call at these; None where that is always the same."""
        return {"per_params": self._of_params, "per_call": self._of_call}.get(self._kind)

    def _of_params(self, params: Array) -> int:
        return self._hashed(params.tobytes())

    def _of_call(self, params: Array) -> int:
        with _counting:
            call, self._calls = self._calls, self._calls + 1
        return self._hashed(call.to_bytes(8, "little"))

    def _hashed(self, content: bytes) -> int:
        key = self._seed.to_bytes(8, "little")
        return int.from_bytes(hashlib.blake2b(content, digest_size=8, key=key).digest(), "little") >> 1
