"""One thread for every framework, so that a ratio compares the same work on the same means."""

from __future__ import annotations

from collections.abc import MutableMapping

#: Read by the frameworks when they start. PyTorch and NumPy's BLAS keep to the first, XLA sizes its
#: pools by the second, TensorFlow by the others.
VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "NPROC": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
}
XLA = "--xla_cpu_multi_thread_eigen=false"


def one_thread(environment: MutableMapping[str, str]) -> None:
    """Ask for one thread; to be called before any framework is imported.

    Args:
        environment: of this process, or of one to be started.
    """
    environment.update(VARIABLES)
    flags = environment.get("XLA_FLAGS", "")
    if XLA not in flags:
        environment["XLA_FLAGS"] = f"{flags} {XLA}".strip()
