"""What passes between core and plugins as plain records: a backend's declaration, and a step that was made."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from gradbridge.errors import UnknownBackendError
from gradbridge.protocol import PROTOCOL_VERSION


@dataclass(frozen=True)
class Backend:
    """A backend's declaration: what `gradbridge_backend` returns. Naming it imports nothing.

    Attributes:
        name: what users write, e.g. ``"torch"``.
        framework: the module to import and the distribution that carries it, e.g.
            ``("torch", "torch")``; None for a backend that needs none.
        install: the command that installs the framework.
        guest: ``"module:function"`` of the guest half, a `GuestHalf`; None if there is none.
        host: ``"module:class"`` of the host half, a `Host` subclass; None if there is none.
        builder: ``"module:function"`` that builds a portable architecture as a native model from
            ``(Architecture, {name: array})``; None if it builds none.
        models: qualified names of classes; a model with one of them in its MRO is this backend's.
        wrappers: {``"as_module"``: ``"module:function"``} of what makes a layer of its kind of any bridge.
        arrays: qualified names of classes of arrays, traced or not; a call with one of them in its MRO may be this
            host's.
        has_compiler: whether its framework has a compiler that may read a call before it is first made, so that the
            host half is loaded as soon as the framework is (`gradbridge.lifting.compilers`).
        protocol: version of the adapter protocol that it was written for.
        aliases: other names that users know it by, e.g. ``("pytorch",)``; in any case. A backend that is
            called so goes first.
    """

    name: str
    framework: tuple[str, str] | None = None
    install: str = ""
    guest: str | None = None
    host: str | None = None
    builder: str | None = None
    models: tuple[str, ...] = ()
    protocol: int = PROTOCOL_VERSION
    aliases: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    wrappers: Mapping[str, str] = field(default_factory=dict)
    has_compiler: bool = False

    @property
    def roles(self) -> tuple[str, ...]:
        """``("guest", "host")``, or the one of them that it has."""
        return tuple(role for role in ("guest", "host") if getattr(self, role) is not None)


_TARGET = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")


def fault_of(backend: Backend) -> str:
    """What is wrong with the fields of a declaration, in words; empty where nothing is."""

    def is_text(value: Any) -> bool:
        return isinstance(value, str) and bool(value.strip())

    framework, models = backend.framework, backend.models
    if not is_text(backend.name):
        return f"name must be a string that users can write in backend=, got {backend.name!r}"
    is_pair = isinstance(framework, tuple) and len(framework) == 2 and all(map(is_text, framework))
    if framework is not None and not is_pair:
        return f"framework is not the names of a module and of its distribution, but {framework!r}"
    if not isinstance(backend.install, str):
        return f"install must be a string, got {backend.install!r}"
    if not isinstance(backend.wrappers, Mapping):
        return f"wrappers must be a mapping of names to 'module:name', got {backend.wrappers!r}"
    targets = {role: getattr(backend, role) for role in ("guest", "host", "builder")}
    for role, target in [*targets.items(), *backend.wrappers.items()]:
        if target is not None and not (isinstance(target, str) and _TARGET.fullmatch(target)):
            return f"{role} is not written 'module:name', but {target!r}"
    if not isinstance(backend.aliases, (tuple, list)) or not all(map(is_text, backend.aliases)):
        return f"aliases must be a tuple of names, got {backend.aliases!r}"
    for what, classes in (("models", models), ("arrays", backend.arrays)):
        if not isinstance(classes, (tuple, list)) or not all(map(is_text, classes)):
            return f"{what} must be a tuple of qualified names of classes, got {classes!r}"
        for name in classes:  # everything is a builtins.object, and typing.Generic is a base of many
            if name.partition(".")[0] in sys.stdlib_module_names:
                return f"{what} has {name}, which is Python's own and no class of a framework"
    return ""


@dataclass(frozen=True)
class BackendInfo:
    """What `gradbridge.backends()` tells of one backend.

    `installed` and `version` look at what is installed and import nothing. `reason` and
    `available` are the truth and cost an import of the framework, the first time they are read.

    Attributes:
        name: of the backend; of a plugin that could not be registered.
        roles: what it can be; of such a plugin none.
        package: the distribution that it is from.
        install: the command that installs its framework.
        installed: whether its framework is there; true where it needs none.
        version: of the framework; None where there is none.
        note: what else is to be known: it claims what is another's.
    """

    name: str
    roles: tuple[str, ...]
    package: str
    install: str
    installed: bool
    version: str | None
    _load: Callable[[], str | None] = field(repr=False, compare=False)
    note: str = ""

    @property
    def state(self) -> str:
        """``"works"``; ``"missing"``, where its framework is not installed; or ``"failed"``, for `reason`."""
        if self.available:
            return "works"
        return "failed" if self.installed or not self.roles else "missing"

    @functools.cached_property
    def reason(self) -> str | None:
        """Why it cannot be used, with the command that installs what is missing; None if it can."""
        return self._load()

    @property
    def available(self) -> bool:
        """Whether its framework is installed and imports."""
        return self.reason is None


class BackendInfos(dict[str, BackendInfo]):
    """What `gradbridge.backends()` returns: a dict, sorted by name, that answers another name with the nearest.

    Args:
        infos: by name.
        named: the name of a backend by any that it is known by; raises for others.
    """

    def __init__(self, infos: Mapping[str, BackendInfo], named: Callable[[str], str]) -> None:
        super().__init__(infos)
        self._named = named

    def __missing__(self, key: str) -> BackendInfo:
        name = self._named(key)
        raise UnknownBackendError(f"{key!r} is another name of backend {name!r}; ask for {name!r} here")


@dataclass(frozen=True, slots=True)
class Step:
    """What an observer of a protocol step is told.

    Attributes:
        name: ``update``, ``forward``, ``zero`` or ``backward``.
        bridge: label of the model, e.g. ``Net`` (``gradient of Net`` for a derivative of it; ``Net, JVP``
            for its forward mode, ``Net, JVP checked`` where the first of them was compared with a
            backward; in a Jacobian ``Net, per-example``, ``rows at once``, ``batched VJP`` or
            ``batched JVP``).
        shapes: of the params (update), the inputs (forward; a JVP's tangents), or the cotangents
            (backward).
        seconds: wall time that the guest took.
    """

    name: str
    bridge: str
    shapes: tuple[tuple[int, ...], ...]
    seconds: float


class Observers(Protocol):
    """Who is told of steps: the registry, to the evaluations that make them."""

    #: Whether anybody observes. Read on every call, so a plain bool.
    observed: bool

    def notify(self, step: Step) -> None:
        """Hand the record of a step to everyone who observes it."""
