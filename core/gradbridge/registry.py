"""The registry: which backends and plugins there are, loaded one at a time and only when needed.

Everyone's backend comes in by the same door: an entry point of the group `gradbridge` that names
a module with pluggy hookimpls. Such a module is light; the framework behind it is imported when
a half of it is first needed. What cannot load never stops the others and never hides.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gradbridge.declarations import Backend, BackendInfo
from gradbridge.errors import (
    BackendUnavailableError,
    GradbridgeError,
    GradbridgeWarning,
    PluginError,
    UnknownBackendError,
    UnknownModelError,
)
from gradbridge.foreign import foreign_code
from gradbridge.host import Host
from gradbridge.layout import ParameterLayout
from gradbridge.plugins import Plugin, Plugins
from gradbridge.protocol import Adapter, GuestOptions
from gradbridge.wording import suggestion

GuestHalf = Callable[[Any, GuestOptions], Adapter]


class Registry(Plugins):
    """The backends and plugins of one process, or of one test.

    Args:
        entry_points: the plugins to know, as ``importlib.metadata.EntryPoint``; by default
            every one of the group `gradbridge` that is installed.
    """

    def __init__(self, entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> None:
        super().__init__(entry_points)
        self._halves: dict[tuple[str, str], Any] = {}

    # A registry belongs to its process: a copy is the same one, and a pickled one is the default of the
    # process that reads it.

    def __copy__(self) -> Registry:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Registry:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return default_registry, ()

    # -- backends -----------------------------------------------------------------------------

    @property
    def problems(self) -> dict[str, str]:
        """{plugin: what is wrong with it}: it could not be taken in, or claims what is another's."""
        told: dict[str, str] = {}
        for (name, package), text in self._all_problems().items():
            told[f"{name} ({package})" if name in told else name] = text
        return told

    def _all_problems(self) -> dict[tuple[str, str], str]:
        """{(plugin, package): what is wrong with it}"""
        self._load_plugins()
        texts = {key: list(some) for key, some in self._problems.items()}
        for plugin, text in self._contested():
            texts.setdefault((plugin.name, plugin.package), []).append(text)
        return {key: "; ".join(some) for key, some in texts.items()}

    def _contested(self) -> Iterator[tuple[Plugin, str]]:
        """(plugin, what is to be said of it) for classes that two backends claim."""
        claimed: dict[str, tuple[str, Plugin]] = {}
        for name, (backend, plugin) in self._backends.items():
            for model in backend.models:
                other, owner = claimed.setdefault(model, (name, plugin))
                if owner.is_own and owner is not plugin:
                    yield plugin, _stays(plugin, name, model, owner, other)
                elif owner is not plugin:
                    text = (
                        f"{plugin.said} claims {model} for its backend {name!r}, and {owner.said} for its backend "
                        f"{other!r}; such models go to neither: say which with backend="
                    )
                    yield plugin, text
                    yield owner, text

    def names(self) -> list[str]:
        """Names of the declared backends, sorted; imports no framework."""
        self._load_plugins()
        return sorted(self._backends)

    def backend(self, name: str) -> Backend:
        """The declaration of one backend.

        Raises:
            UnknownBackendError: no such name; the nearest one is suggested, and a plugin of
                that name that failed is named with its reason.
        """
        self._load_plugins()
        if name in self._backends:
            return self._backends[name][0]
        problems = self.problems
        if name in problems:
            raise UnknownBackendError(f"backend {name!r} could not be taken in: {problems[name]}")
        hint = suggestion(name, self._backends, 0.5)
        raise UnknownBackendError(
            f"there is no backend {name!r}; {hint}installed: {', '.join(self.names()) or 'none'}"
        )

    def guest(self, name: str) -> GuestHalf:
        """The guest half of a backend, importing its framework.

        Raises:
            UnknownBackendError, BackendUnavailableError
        """
        half: GuestHalf = self._half(name, "guest")
        return half

    def host(self, name: str) -> Host:
        """The host half of a backend, importing its framework.

        Raises:
            UnknownBackendError, BackendUnavailableError
        """
        half: Host = self._half(name, "host")
        return half

    def builder(self, name: str) -> Callable[[Any, dict[str, Any]], Any]:
        """The builder of portable architectures of a backend, importing its framework.

        Raises:
            UnknownBackendError, BackendUnavailableError
        """
        half: Callable[[Any, dict[str, Any]], Any] = self._half(name, "builder")
        return half

    def match(self, model: Any) -> str:
        """Find a model's backend from the classes in its MRO, without importing any framework.

        Raises:
            UnknownModelError: none recognises it.
        """
        self._load_plugins()
        claims: list[tuple[str, list[str]]] = []  # (class, who claims it), the most derived first
        for cls in type(model).__mro__:
            qualified = f"{cls.__module__}.{cls.__qualname__}"
            names = [name for name, (backend, _) in self._backends.items() if qualified in backend.models]
            if names:
                claims.append((qualified, names))
        if claims:
            return self._chosen(claims)
        guests = ", ".join(n for n, (b, _) in sorted(self._backends.items()) if b.guest)
        raise UnknownModelError(
            f"no backend recognises a {type(model).__module__}.{type(model).__qualname__}; say which one "
            f"with backend=…, one of {guests}"
            + ("; for a function also give params=…, or use gradbridge.primitive" if callable(model) else "")
        )

    def _chosen(self, claims: list[tuple[str, list[str]]]) -> str:
        """The backend of a model by its classes that are claimed: the most derived of them decides.

        But our own backends keep their frameworks' classes, the derived ones included: who claims one of
        these by name is warned of, and has those models that are given to it with ``backend=``.
        """
        for own_class, names in claims:
            own = next((name for name in names if self._backends[name][1].is_own), None)
            if own is None:
                continue
            framework = own_class.partition(".")[0]
            for qualified, others in claims:
                if qualified.partition(".")[0] != framework:
                    break  # a library on top of the framework, which has a backend of its own
                taking = next((name for name in others if not self._backends[name][1].is_own), None)
                if qualified == own_class:
                    return own
                if taking is not None:
                    owner = self._backends[own][1]
                    text = _stays(self._backends[taking][1], taking, qualified, owner, own)
                    if self.complain(self._backends[taking][1], text):
                        warnings.warn(text, GradbridgeWarning, stacklevel=4)
            break
        qualified, names = claims[0]
        if len(names) > 1:
            said = " and ".join(f"{name!r} of package {self._backends[name][1].package!r}" for name in names)
            raise UnknownModelError(
                f"backends {said} both claim {qualified}; say which one with backend=…, one of {', '.join(names)}"
            )
        return names[0]

    def infos(self) -> dict[str, BackendInfo]:
        """{name: BackendInfo} of all backends, and of plugins that failed."""
        problems = self._all_problems()
        found = {}
        for name in self.names():
            backend, plugin = self._backends[name]
            found[name] = self._info(backend, plugin, problems.pop((plugin.name, plugin.package), ""))
        for (name, package), problem in problems.items():
            key = f"{name} ({package})" if name in found else name
            found[key] = BackendInfo(name, (), package, "", False, None, functools.partial(str, problem))
        return dict(sorted(found.items()))

    def _info(self, backend: Backend, plugin: Plugin, note: str) -> BackendInfo:
        installed, version = True, None
        if backend.framework is not None:
            module, distribution = backend.framework
            installed = has_module(module)
            version = _version(module, distribution) if installed else None

        def load() -> str | None:
            try:
                for role in backend.roles:
                    self._half(backend.name, role)
            except GradbridgeError as error:
                return str(error)
            return None

        return BackendInfo(
            backend.name, backend.roles, plugin.package, backend.install, installed, version, load, note
        )

    def _half(self, name: str, role: str) -> Any:
        known = self._halves.get((name, role))
        if known is not None:
            return known
        backend = self.backend(name)
        target = getattr(backend, role)
        if target is None:
            others = ", ".join(n for n, (b, _) in sorted(self._backends.items()) if getattr(b, role))
            raise UnknownBackendError(f"backend {name!r} is no {role}; these are: {others or 'none'}")
        self._import_framework(backend)
        said = (
            f"the {role} half of backend {name!r} of package {self._backends[name][1].package!r}, {target},"
        )
        module_name, _, attribute = target.partition(":")
        with foreign_code(BackendUnavailableError, f"{said} does not import"):
            half = getattr(importlib.import_module(module_name), attribute)
        if not callable(half):
            raise PluginError(f"{said} cannot be called: it is {_kind(half)}")
        made: Any
        if role == "host":
            with foreign_code(PluginError, f"{said} cannot be made"):
                made = half()
            if not isinstance(made, Host):
                raise PluginError(f"{said} is no gradbridge.host.Host: calling it gives {_kind(made)}")
        else:
            made = functools.partial(_CHECKED[role], half, said)
        with self._lock:
            return self._halves.setdefault((name, role), made)

    def _forget_backend(self, name: str) -> None:
        for role in ("guest", "host", "builder"):
            self._halves.pop((name, role), None)

    def _import_framework(self, backend: Backend) -> None:
        if backend.framework is None:
            return
        module, _ = backend.framework
        line = f"; install it with: {backend.install}" if backend.install else ""
        needs = f"backend {backend.name!r} needs {module}, which"
        if not has_module(module):
            raise BackendUnavailableError(f"{needs} is not installed{line}")
        try:
            with foreign_code(BackendUnavailableError, f"{needs} does not import"):
                importlib.import_module(module)
        except BackendUnavailableError as error:
            raise BackendUnavailableError(f"{error}{line}") from error.__cause__


def _adapted(half: GuestHalf, said: str, model: Any, options: GuestOptions) -> Adapter:
    """What a guest half makes of a model, looked at before it is used."""
    adapter = half(model, options)
    if not isinstance(adapter, Adapter):
        raise PluginError(
            f"{said} returned {_kind(adapter)} for a {type(model).__name__}, and should return a gradbridge.Adapter"
        )
    for name, kind in (("label", str), ("layout", ParameterLayout)):
        value = getattr(adapter, name, None)
        if not isinstance(value, kind):
            raise PluginError(
                f"{said} returned an Adapter whose {name} is {_kind(value)}, and should be a {kind.__name__}"
            )
    return adapter


def _built(half: Callable[..., Any], said: str, architecture: Any, arrays: dict[str, Any]) -> Any:
    """What a builder makes of an architecture."""
    model = half(architecture, arrays)
    if model is None:
        raise PluginError(f"{said} returned None for {architecture.name!r}, and should return a native model")
    return model


_CHECKED: dict[str, Callable[..., Any]] = {"guest": _adapted, "builder": _built}


def _kind(value: Any) -> str:
    """Of a value, in words."""
    if value is None:
        return "None"
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def _stays(plugin: Plugin, name: str, model: str, owner: Plugin, other: str) -> str:
    return (
        f"{plugin.said} claims {model} for its backend {name!r}, and such models belong to backend {other!r} of "
        f"package {owner.package!r}; they stay there: say backend={name!r} where {name!r} is meant"
    )


def _version(module: str, distribution: str) -> str:
    """Of a framework that is installed, whichever distribution brings it (``tensorflow-cpu``, a nightly build)."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        pass
    for name in importlib.metadata.packages_distributions().get(module.partition(".")[0], ()):
        return importlib.metadata.version(name)
    return "unknown"


def has_module(name: str) -> bool:
    """Whether a module can be found, without importing it: of a submodule its parents are."""
    if name in sys.modules:
        return sys.modules[name] is not None
    try:
        with foreign_code(BackendUnavailableError, name):
            return importlib.util.find_spec(name) is not None
    except BackendUnavailableError:
        return False


_default: Registry | None = None


def default_registry() -> Registry:
    """The process's registry of installed plugins, made when first asked for."""
    global _default
    if _default is None:
        _default = Registry()
    return _default
