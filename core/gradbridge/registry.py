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
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pluggy

from gradbridge import hookspecs
from gradbridge.declarations import Backend, BackendInfo, Step
from gradbridge.errors import BackendUnavailableError, PluginError, UnknownBackendError, UnknownModelError
from gradbridge.host import Host
from gradbridge.protocol import PROTOCOL_VERSION, Adapter, GuestOptions
from gradbridge.wording import suggestion

BY_HAND = "(registered by hand)"

GuestHalf = Callable[[Any, GuestOptions], Adapter]


class Registry:
    """The plugins of one process, or of one test.

    Args:
        entry_points: the plugins to know, as ``importlib.metadata.EntryPoint``; by default
            every one of the group `gradbridge` that is installed.
    """

    def __init__(self, entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> None:
        self._manager = pluggy.PluginManager(hookspecs.GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._entry_points = entry_points
        self._backends: dict[str, tuple[Backend, str]] = {}
        self._declared_by: dict[int, str] = {}
        self._problems: dict[str, str] = {}
        self._halves: dict[tuple[str, str], Any] = {}
        self._lock = threading.RLock()
        self._loaded = False
        #: Whether anybody observes the protocol steps. Read on every call, so kept as a plain bool.
        self.observed = False

    # -- plugins ------------------------------------------------------------------------------

    def register(self, plugin: Any, name: str | None = None) -> None:
        """Add a plugin by hand: an object or module with hookimpls.

        Raises:
            PluginError: it breaks the hook contract.
        """
        with self._lock:
            self._add(plugin, name or str(getattr(plugin, "__name__", type(plugin).__name__)), BY_HAND)
            self._look_for_observers()

    def unregister(self, plugin: Any) -> None:
        """Take a plugin out again; its backends are forgotten."""
        with self._lock:
            self._manager.unregister(plugin)
            name = self._declared_by.pop(id(plugin), None)
            if name is not None:
                del self._backends[name]
                for role in ("guest", "host", "builder"):
                    self._halves.pop((name, role), None)
            self._look_for_observers()

    @property
    def problems(self) -> dict[str, str]:
        """{plugin: what is wrong with it}, for plugins that could not be taken in."""
        self._load_plugins()
        return dict(self._problems)

    @property
    def hook(self) -> Any:
        """pluggy's hook relay, for core to call plugins with."""
        self._load_plugins()
        return self._manager.hook

    def _load_plugins(self) -> None:
        if self._loaded:
            return
        with self._lock:
            if self._loaded:
                return
            points = self._entry_points
            if points is None:
                points = importlib.metadata.entry_points(group=hookspecs.GROUP)
            for point in points:
                package = point.dist.name if point.dist is not None else point.value
                try:
                    self._add(point.load(), point.name, package)
                except PluginError as error:
                    self._problems[point.name] = str(error)
                except BaseException as error:  # a broken plugin must not stop the others, whatever it raises
                    if isinstance(error, (KeyboardInterrupt, SystemExit)):
                        raise
                    self._problems[point.name] = (
                        f"plugin {point.name!r} of package {package!r} failed on import of {point.value}: "
                        f"{type(error).__name__}: {error}"
                    )
            self._loaded = True
            self._look_for_observers()

    def _add(self, plugin: Any, name: str, package: str) -> None:
        said = f"plugin {name!r} of package {package!r}"
        try:
            self._manager.register(plugin, name)
            self._check_hook_names(plugin, said)
            declare = getattr(plugin, "gradbridge_backend", None)
            if declare is not None:
                self._declared_by[id(plugin)] = self._declare(declare(), said, package)
        except PluginError:
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            raise
        except Exception as error:
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            raise PluginError(f"{said}: {type(error).__name__}: {error}") from error

    def _check_hook_names(self, plugin: Any, said: str) -> None:
        known = {name for name in vars(hookspecs) if name.startswith("gradbridge_")}
        marked = [
            n for n in dir(plugin) if getattr(getattr(plugin, n, None), f"{hookspecs.GROUP}_impl", None)
        ]
        for name in marked:
            if name not in known:
                hint = suggestion(name, known).replace("'", "") or f"known hooks: {', '.join(sorted(known))}"
                raise PluginError(f"{said} implements a hook {name!r} that does not exist; {hint.rstrip()}")

    def _declare(self, backend: Any, said: str, package: str) -> str:
        if not isinstance(backend, Backend):
            raise PluginError(
                f"{said}: gradbridge_backend() must return a gradbridge.registry.Backend, "
                f"got {type(backend).__name__}"
            )
        if backend.protocol != PROTOCOL_VERSION:
            raise PluginError(
                f"{said} was written for adapter protocol {backend.protocol}, this gradbridge speaks "
                f"{PROTOCOL_VERSION}; install a matching version of one of them"
            )
        if backend.name in self._backends:
            _, other = self._backends[backend.name]
            raise PluginError(
                f"{said} claims the backend name {backend.name!r}, which package {other!r} has already; "
                f"it stays with {other!r}"
            )
        self._backends[backend.name] = (backend, package)
        return backend.name

    # -- backends -----------------------------------------------------------------------------

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
        if name in self._problems:
            raise UnknownBackendError(f"backend {name!r} could not be taken in: {self._problems[name]}")
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
        mro = [f"{cls.__module__}.{cls.__qualname__}" for cls in type(model).__mro__]
        for qualified in mro:  # the most derived class that anybody knows decides
            for name, (backend, _) in self._backends.items():
                if qualified in backend.models:
                    return name
        guests = ", ".join(n for n, (b, _) in sorted(self._backends.items()) if b.guest)
        raise UnknownModelError(
            f"no backend recognises a {type(model).__module__}.{type(model).__qualname__}; say which one "
            f"with backend=…, one of {guests}"
            + ("; for a function also give params=…, or use gradbridge.primitive" if callable(model) else "")
        )

    def infos(self) -> dict[str, BackendInfo]:
        """{name: BackendInfo} of all backends, and of plugins that failed."""
        self._load_plugins()
        found = {name: self._info(*self._backends[name]) for name in self.names()}
        for name, problem in self._problems.items():
            if name not in found:
                found[name] = BackendInfo(name, (), name, "", False, None, functools.partial(str, problem))
        return found

    def _info(self, backend: Backend, package: str) -> BackendInfo:
        installed, version = True, None
        if backend.framework is not None:
            module, distribution = backend.framework
            installed = has_module(module)
            try:
                version = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                version = None

        def load() -> str | None:
            try:
                for role in backend.roles:
                    self._half(backend.name, role)
            except BackendUnavailableError as error:
                return str(error)
            return None

        return BackendInfo(backend.name, backend.roles, package, backend.install, installed, version, load)

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
        module_name, _, attribute = target.partition(":")
        try:
            half = getattr(importlib.import_module(module_name), attribute)
        except Exception as error:
            raise BackendUnavailableError(
                f"the {role} half of backend {name!r}, {target}, does not import: "
                f"{type(error).__name__}: {error}"
            ) from error
        with self._lock:
            return self._halves.setdefault((name, role), half() if role == "host" else half)

    def _import_framework(self, backend: Backend) -> None:
        if backend.framework is None:
            return
        module, _ = backend.framework
        try:
            importlib.import_module(module)
        except Exception as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == module
            what = "is not installed" if missing else f"does not import: {type(error).__name__}: {error}"
            line = f"; install it with: {backend.install}" if backend.install else ""
            raise BackendUnavailableError(
                f"backend {backend.name!r} needs {module}, which {what}{line}"
            ) from error

    # -- observers ----------------------------------------------------------------------------

    def notify(self, step: Step) -> None:
        """Hand the record of a step to everyone who observes it."""
        getattr(self._manager.hook, f"gradbridge_{step.name}")(step=step)

    @contextmanager
    def observing(self, plugin: Any) -> Iterator[None]:
        """Register an observer for the duration of a block."""
        self.register(plugin, f"{type(plugin).__name__}-{id(plugin)}")
        try:
            yield
        finally:
            self.unregister(plugin)

    def _look_for_observers(self) -> None:
        hooks = (getattr(self._manager.hook, name) for name in hookspecs.step_hooks())
        self.observed = any(hook.get_hookimpls() for hook in hooks)


def has_module(name: str) -> bool:
    """Whether a module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


_default: Registry | None = None


def default_registry() -> Registry:
    """The process's registry of installed plugins, made when first asked for."""
    global _default
    if _default is None:
        _default = Registry()
    return _default
