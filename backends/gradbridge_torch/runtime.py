"""PyTorch's pool of threads, which a forked child does not have: it computes in one."""

from __future__ import annotations

import torch

from gradbridge import forks
from gradbridge.forks import Runtime


class TorchRuntime(Runtime):
    """The pool of OpenMP. A region of several threads waits in a child for those of its parent; one of one does not."""

    name = "PyTorch"

    def is_started(self) -> bool:
        return True

    def runs_here(self) -> bool:
        return "torch" not in forks.inherited

    def require(self) -> None:
        """Let PyTorch compute in one thread here, as its own data loaders do in theirs; it refuses nothing."""
        if self.lost_by is not None and torch.get_num_threads() > 1:
            torch.set_num_threads(1)


RUNTIME = TorchRuntime()
