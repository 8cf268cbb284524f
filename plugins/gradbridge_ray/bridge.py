"""The entry point: `shard_rows`, and the bridge that it returns."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray

from gradbridge import trees
from gradbridge.audit.report import AuditReport
from gradbridge.bridge import Bridge
from gradbridge.errors import BackendError, OptionError
from gradbridge.option_values import POSITIVE, check_options, whole
from gradbridge.outside import is_installed
from gradbridge.placed import PlacedArray
from gradbridge.primitive import Primitive
from gradbridge.protocol import Adapter
from gradbridge.registry import default_registry
from gradbridge_ray.adapter import ShardedAdapter
from gradbridge_ray.placing import Remembered, place
from gradbridge_ray.pool import Pool
from gradbridge_ray.shard import built
from gradbridge_ray.status import Status, watched
from gradbridge_ray.waiting import Options

#: Options of `gradbridge.bridge` that the bridge in this process has; the others go to the workers' models.
_OURS = ("host", "seed", "noise", "check_finite", "reuse", "nondiff", "audit", "outputs", "registry")


def shard_rows(
    model: Any,
    workers: int = 8,
    *,
    cpus_per_worker: float = 1,
    gpus_per_worker: float = 0,
    timeout: float | None = None,
    remember_rows: int = 0,
    **bridge_options: Any,
) -> ShardedBridge:
    """Make a model a differentiable function whose rows are computed by workers of a Ray cluster.

    ::

        with shard_rows(make_model, workers=8, dtype="float64") as g:
            R = g.place(X)
            autograd.value_and_grad(lambda p: np.mean((g(p, R) - y) ** 2))(g.params)

    The cluster is the one that this process has joined by `ray.init`; where it has joined none, one is
    started on this machine, and stopped when the bridge is closed.

    Args:
        model: a function without arguments that makes the model, called in each worker; or a native model, a
            function with `params`, or a Bridge, any of which is pickled and sent. Each row of its outputs must
            depend on its own row of the inputs, and on what all rows share; the first call makes sure. The
            workers' models must be one: the first call makes sure of that, too.
        workers: how many.
        cpus_per_worker, gpus_per_worker: of the cluster's, for each; frameworks use as many threads.
        timeout: seconds that a worker may take for one step before `ShardTimeoutError`; None for any.
        remember_rows: how many arrays that are passed without having been placed are kept placed, so that a program
            which passes the same rows in each call sends them once. They are recognised by their content, which a
            copy of each is kept for.
        **bridge_options: of `gradbridge.bridge`, those of the model's backend among them.

    Returns:
        A bridge that also places rows, tells what its workers do, and can be closed.

    Raises:
        OptionError: an option that there is not, or a value that it cannot take; ``mode="train"``.
        ClusterError: the cluster has not so many CPUs.
        UnknownModelError: no backend recognises the model.
        GradbridgeError: whatever `gradbridge.bridge` raises in a worker.
    """
    whole("a number of workers, 1 or more", 1).check("workers", workers)
    whole("a number of arrays, 0 or more", 0).check("remember_rows", remember_rows)
    POSITIVE.check("cpus_per_worker", cpus_per_worker)
    if timeout is not None:
        POSITIVE.check("timeout", timeout)
    if isinstance(model, Primitive):
        raise OptionError(
            f"{model!r} is a function of arrays alone, and shard_rows takes models, whose params come first: write it as a function "
            f"of (params, *inputs) and give params=, or bridge the model in it"
        )
    ours = {name: value for name, value in bridge_options.items() if name in _OURS}
    theirs = {name: value for name, value in bridge_options.items() if name not in _OURS}
    check_options(**{k: v for k, v in ours.items() if k not in ("nondiff", "outputs")})
    if isinstance(model, (Bridge, Adapter)) and bridge_options:
        raise OptionError(
            f"{type(model).__name__} is complete: give {', '.join(bridge_options)} where it is made"
        )
    if isinstance(model, Bridge):
        ours = model.made_with()[1]
        theirs = {"mode": ours["mode"]}
    if theirs.get("mode", "eval") != "eval":
        raise OptionError(
            f"mode={theirs['mode']!r} was asked for, where rows share masks and batch statistics; shard_rows computes "
            f"them apart: use mode='eval', or gradbridge.bridge in one process"
        )
    follows = bool(ours.pop("follows", False))
    ours.pop("first_input", None)
    if _makes(model, theirs):
        local: Callable[[], Adapter] = _Made(model, theirs)
        payload = _pickled((model, theirs), model)
    else:
        adapter, follows_here = built(model, theirs)
        follows = follows or follows_here
        local = _Given(adapter)
        payload = _pickled((local, {}), getattr(model, "__class__", None), model)
    pool = Pool(Options(payload, int(workers), float(cpus_per_worker), float(gpus_per_worker), timeout))
    pool.start()
    try:
        facts = pool.facts(())
        assert facts is not None
        adapter = ShardedAdapter(pool, (), facts, local)
        return ShardedBridge(adapter, pool, int(remember_rows), follows=follows or pool.follows, **ours)
    except BaseException:
        pool.close()
        raise


class ShardedBridge(Bridge):
    """A bridge whose rows are computed by workers. See `shard_rows`.

    Args:
        adapter: of the workers.
        pool: the workers.
        remember_rows: as for `shard_rows`.
        **options: of `Bridge`.
    """

    def __init__(self, adapter: ShardedAdapter, pool: Pool, remember_rows: int = 0, **options: Any) -> None:
        self._pool, self._remembered = pool, Remembered(remember_rows)
        super().__init__(adapter, **options)

    def __call__(self, params: Any, *inputs: Any, **kwargs: Any) -> Any:
        """See `Bridge`."""
        return super().__call__(params, *self._remembered.placed(self._pool, inputs), **kwargs)

    @property
    def workers(self) -> int:
        """How many there are."""
        return self._pool.count

    def place(self, data: Any, *, rows: bool = True, column: str | None = None) -> PlacedArray:
        """Put rows into the object store, once, in a piece for each worker, to be passed in place of an array.

        A call cuts its other inputs as the placed ones are cut: arrays with as many rows are scattered, all others
        are sent whole, to all workers. Placed inputs of one call must be cut alike.

        Args:
            data: an array, (n, …); or a list of references to arrays, which stay as they are; or a Ray Dataset.
            rows: False puts an array there whole, for what all rows share: sent once rather than in each call.
            column: of a Ray Dataset with several.

        Returns:
            The handle: it has the shape, dtype and length of the whole, and a gradient by it is an array of that shape.

        Raises:
            InputError: no array of numbers, or pieces that do not fit.
            ClusterError
        """
        self._pool.start()
        return place(self._pool, data, rows, column)

    def status(self) -> Status:
        """What the workers did: rows, forwards, backwards, seconds, restarts; prints as a table."""
        return Status({f"{self._pool.name}:{i}": tally for i, tally in enumerate(self._pool.tallies())})

    @contextmanager
    def watch(self, seconds: float = 0.5) -> Iterator[None]:
        """Show the workers in a live table on the terminal while a block runs.

        Args:
            seconds: between two looks.
        """
        with watched(self.status, seconds):
            yield

    def audit(self, params: Any, *inputs: Any, told: Any = None, **kwargs: Any) -> AuditReport:
        """See `Bridge.audit`. Placed inputs are brought here for it: it looks at other numbers near them."""
        here = trees.flatten((inputs, kwargs))
        leaves = [np.asarray(x) if isinstance(x, PlacedArray) else x for x in here[0]]
        inputs, kwargs = trees.unflatten(here[1], leaves)
        return super().audit(params, *inputs, told=told, **kwargs)

    def close(self) -> None:
        """End the workers, and the cluster if it was started for them. Copies of this bridge share them."""
        self._pool.close()

    def __enter__(self) -> ShardedBridge:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, rows over {self._pool.count} workers>"


class _Given:
    """A model that was made here."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    def __call__(self) -> Adapter:
        return self._adapter


class _Made:
    """A model that is made in this process, too, if somebody asks for it."""

    def __init__(self, make: Callable[[], Any], options: Mapping[str, Any]) -> None:
        self._make, self._options = make, options
        self._adapter: Adapter | None = None

    def __call__(self) -> Adapter:
        if self._adapter is None:
            self._adapter = built(self._make(), self._options)[0]
        return self._adapter

    def __reduce__(self) -> Any:
        return _unpickled, (ray.cloudpickle.dumps((self._make, self._options)),)


def _unpickled(pickled: bytes) -> _Made:
    return _Made(*ray.cloudpickle.loads(pickled))


def _makes(model: Any, options: Mapping[str, Any]) -> bool:
    """Whether this is what makes the model rather than the model: it is called without arguments, and no model itself."""
    if isinstance(model, (Bridge, Adapter)) or not callable(model) or options.get("params") is not None:
        return False
    try:
        default_registry().match(model)
        return False
    except BackendError:
        pass
    try:
        parameters = inspect.signature(model).parameters.values()
    except (TypeError, ValueError):
        return False
    required = [
        p
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    return not required


def _pickled(value: Any, *owners: Any) -> bytes:
    """Pickled for workers that may not have the user's own modules: what is defined in these goes along.

    Raises:
        OptionError: it cannot be pickled.
    """
    modules = [
        m for m in (sys.modules.get(getattr(o, "__module__", None) or "") for o in owners) if _is_users(m)
    ]
    registered = []
    try:
        for module in modules:
            if module.__name__ not in ray.cloudpickle.list_registry_pickle_by_value():
                ray.cloudpickle.register_pickle_by_value(module)
                registered.append(module)
        pickled: bytes = ray.cloudpickle.dumps(value)
        return pickled
    except Exception as error:  # whatever a user's __reduce__ raises
        raise OptionError(
            f"the model, or what makes it, cannot be pickled for the workers ({type(error).__name__}: {error}); pass a "
            f"function without arguments that makes it there"
        ) from error
    finally:
        for module in registered:
            ray.cloudpickle.unregister_pickle_by_value(module)


def _is_users(module: types.ModuleType | None) -> bool:
    if (
        module is None
        or module.__name__ == "__main__"
        or module.__name__.partition(".")[0].startswith("gradbridge")
    ):
        return False
    return not is_installed(getattr(module, "__file__", None))
