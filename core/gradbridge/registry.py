"""The registry: which backends and plugins there are, loaded one at a time and only when needed.

All backends are registered in one way, ours too: an entry point of the group `gradbridge` names a
module with pluggy hookimpls. Such a module is light; the framework behind it is imported when a half
of it is first needed. One that cannot be loaded is reported and does not stop the others.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gradbridge import layout
from gradbridge.declarations import Backend, BackendInfo, BackendInfos
from gradbridge.errors import (
    BackendUnavailableError,
    GradbridgeError,
    UnknownBackendError,
    UnknownModelError,
)
from gradbridge.foreign import foreign_code
from gradbridge.forks import undivided
from gradbridge.halves import GuestHalf, checked_half
from gradbridge.host import Host as Host
from gradbridge.host_plugins import HostPlugins, qualified
from gradbridge.installed import has_module, version_of
from gradbridge.notices import notice
from gradbridge.plugins import Plugin
from gradbridge.wording import suggestion, unrecognised


class Registry(HostPlugins):
    """The backends and plugins of one process, or of one test.

    Args:
        entry_points: the plugins to know, as ``importlib.metadata.EntryPoint``; by default
            every one of the group `gradbridge` that is installed.
    """

    def __init__(self, entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> None:
        super().__init__(entry_points)

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
        """{plugin: what is wrong with it}: it could not be registered, or claims what is another's."""
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

        Args:
            name: its own, or another that it is known by (``"keras"`` for ``"tensorflow"``), in any case.

        Raises:
            UnknownBackendError: no such name, or one of several; the nearest one is suggested, and a
                plugin of that name that failed is named with its reason.
        """
        self._load_plugins()
        if isinstance(name, str) and name in self._backends:
            return self._backends[name][0]
        problems = self.problems
        if isinstance(name, str) and name in problems:
            raise UnknownBackendError(f"backend {name!r} could not be registered: {problems[name]}")
        meant = self._also_called(str(name).strip().casefold())
        if len(meant) == 1:
            return self._backends[meant[0]][0]
        if meant:
            raise UnknownBackendError(f"{name!r} may be one of the backends {', '.join(meant)}; say which")
        aliases = (alias for backend, _ in self._backends.values() for alias in backend.aliases)
        hint = suggestion(name, [*self._backends, *aliases], 0.5)
        raise UnknownBackendError(
            f"there is no backend {name!r}; {hint}installed: {', '.join(self.names()) or 'none'}"
        )

    def _also_called(self, folded: str) -> list[str]:
        """The backends that are known by a name in lower case: so called themselves, ours, others'."""
        known = [name for name in self._backends if name.casefold() == folded] or [
            name
            for name, (backend, _) in self._backends.items()
            if folded in map(str.casefold, backend.aliases)
        ]
        return sorted([name for name in known if self._backends[name][1].is_own] or known)

    def guest(self, name: str) -> GuestHalf:
        """The guest half of a backend, importing its framework.

        Raises:
            UnknownBackendError, BackendUnavailableError
        """
        half: GuestHalf = self._half(name, "guest")
        return half

    def builder(self, name: str) -> Callable[[Any, dict[str, Any]], Any]:
        """The builder of portable architectures of a backend, importing its framework.

        Raises:
            UnknownBackendError, BackendUnavailableError
        """
        half: Callable[[Any, dict[str, Any]], Any] = self._half(name, "builder")
        return half

    def match(self, model: Any, has_params: bool = False) -> str:
        """Find a model's backend from the classes in its MRO, without importing any framework.

        Args:
            model: a native model, or a function, which no backend recognises.
            has_params: whether params= was given with it; the error then does not ask for them.

        Raises:
            UnknownModelError: no backend recognises it, or it is a class in place of an instance.
        """
        claims = self._claims(type(model))
        if claims:
            return self._chosen(claims)
        self.refuse_class(model)
        guests = ", ".join(n for n, (b, _) in sorted(self._backends.items()) if b.guest)
        raise UnknownModelError(unrecognised(model, has_params, guests))

    def refuse_class(self, model: Any) -> None:
        """Refuse the class of a native model where an instance of it is expected.

        Raises:
            UnknownModelError
        """
        if isinstance(model, type) and self._claims(model):
            name = model.__qualname__
            raise UnknownModelError(
                f"a model was expected, got the class {name}; make an instance of it, {name}(…), and bridge that"
            )

    def refuse_stranger(self, model: Any, backend: str, size: int = 0) -> None:
        """Refuse a native model of another framework where one of our own backends was asked for.

        It would be called as a function of that backend's arrays, without params.

        Args:
            model: that is to be bridged.
            backend: the name that was given.
            size: how many params were found.

        Raises:
            UnknownModelError
        """
        claims = [] if size else self._claims(type(model))
        theirs = sorted({name for _, names in claims for name in names})
        if theirs and backend not in theirs and self._backends[backend][1].is_own:
            raise UnknownModelError(
                f"a {type(model).__name__} is a model of {' or '.join(theirs)}, and backend={backend!r} was given; leave "
                f"backend= out, or bridge a function of {backend}'s arrays"
            )

    def _claims(self, kind: type) -> list[tuple[type, list[str]]]:
        """(class, names of the backends that claim it) of the classes in an MRO, the most derived first."""
        self._load_plugins()
        claims = []
        for cls in kind.__mro__:
            names = [name for name, (b, _) in self._backends.items() if qualified(cls) in b.models]
            if names:
                claims.append((cls, names))
        return claims

    def _chosen(self, claims: list[tuple[type, list[str]]]) -> str:
        """The backend of a model by its classes that are claimed: the most derived of them decides.

        But our own backends keep the models of their frameworks. A library on top of one, whose classes are
        its own and derive from the framework's, may have a backend for them; who claims a class of the
        framework itself, or one that stands beside it, is warned of.
        """
        cls, names = claims[0]
        own = next(((c, n) for c, some in claims for n in some if self._backends[n][1].is_own), None)
        if own is not None:
            on_top = own[0] in cls.__mro__[1:] and _package(cls) != _package(own[0])
            if not on_top or own[1] in names:
                for name in names:
                    self._warn_of_claim(name, cls, own[1])
                return own[1]
        if len(names) > 1:
            said = " and ".join(f"{name!r} of package {self._backends[name][1].package!r}" for name in names)
            raise UnknownModelError(
                f"backends {said} both claim {qualified(cls)}; say which one with backend=…, one of {', '.join(names)}"
            )
        return names[0]

    def _warn_of_claim(self, name: str, cls: type, own: str) -> None:
        plugin, owner = self._backends[name][1], self._backends[own][1]
        if (
            not plugin.is_own and qualified(cls) not in self._backends[own][0].models
        ):  # else it is listed anyway
            text = _stays(plugin, name, qualified(cls), owner, own)
            if self.complain(plugin, text):
                notice(text)  # who called bridge()

    def infos(self) -> BackendInfos:
        """{name: BackendInfo} of all backends, and of plugins that failed, sorted by name."""
        problems = self._all_problems()
        infos = {}
        for name in self.names():
            backend, plugin = self._backends[name]
            infos[name] = self._info(backend, plugin, problems.pop((plugin.name, plugin.package), ""))
        for (name, package), problem in problems.items():
            key = f"{name} ({package})" if name in infos else name
            infos[key] = BackendInfo(name, (), package, "", False, None, functools.partial(str, problem))
        return BackendInfos(dict(sorted(infos.items())), lambda name: self.backend(name).name)

    def _info(self, backend: Backend, plugin: Plugin, note: str) -> BackendInfo:
        installed, version = True, None
        if backend.framework is not None:
            module, distribution = backend.framework
            installed = has_module(module)
            version = version_of(module, distribution) if installed else None

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
        backend = self.backend(name)
        name = backend.name
        known = self._halves.get((name, role))
        if known is not None:
            return known
        target = backend.wrappers[role] if role in backend.wrappers else getattr(backend, role)
        if target is None:
            others = ", ".join(n for n, (b, _) in sorted(self._backends.items()) if getattr(b, role))
            what = f"a {role}" if role in ("guest", "host", "builder") else f"made for {role}"
            raise UnknownBackendError(f"backend {name!r} is not {what}; those that are: {others or 'none'}")
        said = (
            f"the {role} half of backend {name!r} of package {self._backends[name][1].package!r}, {target},"
        )
        module_name, _, attribute = target.partition(":")
        with undivided():
            self._import_framework(backend)
            with foreign_code(BackendUnavailableError, f"{said} does not import"):
                half = getattr(importlib.import_module(module_name), attribute)
        made = checked_half(role, half, said)
        with self._lock:
            return self._halves.setdefault((name, role), made)

    def _forget_backend(self, name: str) -> None:
        for key in [key for key in self._halves if key[0] == name]:
            self._halves.pop(key)

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


def _package(cls: type) -> str:
    return str(cls.__module__).partition(".")[0]


def _stays(plugin: Plugin, name: str, model: str, owner: Plugin, other: str) -> str:
    return (
        f"{plugin.said} claims {model} for its backend {name!r}, and such models belong to backend {other!r} of "
        f"package {owner.package!r}; they stay there: say backend={name!r} where {name!r} is meant"
    )


_default: Registry | None = None


def _half_of(kind: type) -> Host | None:
    name = default_registry().host_of(kind)
    return None if name is None else default_registry().host(name)


layout.systems.append(_half_of)


def default_registry() -> Registry:
    """The process's registry of installed plugins, made when first asked for."""
    global _default
    if _default is None:
        _default = Registry()
    return _default
