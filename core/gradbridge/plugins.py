"""The plugins of a registry: loaded one by one, named with their package where something is wrong with them.

All plugins are registered in one way, ours too: an entry point of the group `gradbridge` names a module
with pluggy hookimpls. A fault in one is reported and does not stop the others; precedence does not depend
on the order in which they are found.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pluggy

from gradbridge import hookspecs
from gradbridge.declarations import Backend, Step, fault_of
from gradbridge.errors import PluginError
from gradbridge.foreign import foreign_code
from gradbridge.forks import fork_safe_lock, undivided
from gradbridge.hookspecs import GROUP
from gradbridge.notices import notice
from gradbridge.protocol import PROTOCOL_VERSION
from gradbridge.wording import in_short, suggestion

BY_HAND = "(registered by hand)"

#: Names of the hooks.
HOOKS = tuple(name for name in vars(hookspecs) if name.startswith("gradbridge_"))

#: The distribution that core is in. What its own entry points name keeps its names and its classes.
DISTRIBUTION = "gradbridge"


class Plugin:
    """One plugin, as it was registered.

    Attributes:
        name: of its entry point, or as it was registered.
        package: the distribution that it is from.
        is_own: whether that is this one.
        source: the module or object with the hookimpls.
        said: how errors begin that are about it.
        key: what tells it from all others.
    """

    def __init__(self, name: str, package: str, is_own: bool, source: Any = None) -> None:
        self.name, self.package, self.is_own, self.source = name, package, is_own, source
        self.said = f"plugin {name!r} of package {package!r}"
        self.key = f"{name} of {package}"


class _Hooks:
    """What a plugin implements, as pluggy is handed it: equal to itself alone, as a list or a dataclass is not."""

    def __init__(self, plugin: Plugin, routines: dict[str, Any]) -> None:
        self.__dict__.update(routines)
        self._plugin = plugin


class Plugins:
    """The half of `Registry` that takes plugins in and calls their hooks.

    Args:
        entry_points: the plugins to know, as ``importlib.metadata.EntryPoint``; by default
            every one of the group `gradbridge` that is installed.
    """

    def __init__(self, entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._entry_points = entry_points
        self._pending: list[tuple[Plugin, importlib.metadata.EntryPoint]] | None = None
        self._taken: dict[str, _Hooks] = {}
        self._backends: dict[str, tuple[Backend, Plugin]] = {}
        self._problems: dict[tuple[str, str], list[str]] = {}  # {(plugin, package): what is wrong with it}
        self._observers: dict[str, list[tuple[Plugin, Callable[..., Any]]]] = {}
        self._complained: set[Plugin] = set()
        self._lock = fork_safe_lock()
        self._loaded = False
        #: Whether anybody observes the protocol steps. Read on every call, so kept as a plain bool.
        self.observed = False

    def register(self, plugin: Any, name: str | None = None) -> None:
        """Add a plugin by hand: an object or module with hookimpls. Once more is once.

        Raises:
            PluginError: it breaks the hook contract, or its name is taken.
        """
        self._load_plugins()  # those that are installed come first, whenever this is called
        with self._lock:
            if self._hooks_of(plugin) is None:
                name = name if name is not None else str(getattr(plugin, "__name__", type(plugin).__name__))
                self._add(Plugin(name, BY_HAND, False, plugin))

    def unregister(self, plugin: Any) -> None:
        """Take a plugin out again; its backends are forgotten.

        Raises:
            PluginError: it is not registered.
        """
        with self._lock:
            hooks = self._hooks_of(plugin)
            if hooks is None:
                raise PluginError(
                    f"unregister takes a registered plugin, and this {type(plugin).__name__} is not registered"
                )
            self._remove(hooks)

    @contextmanager
    def observing(self, plugin: Any) -> Iterator[None]:
        """Register an observer for the duration of a block."""
        if self._hooks_of(plugin) is not None:
            yield
            return
        self.register(plugin, f"{type(plugin).__name__}-{id(plugin)}")
        try:
            yield
        finally:
            self.unregister(plugin)

    def complain(self, plugin: Plugin, text: str) -> bool:
        """Note what is wrong with a plugin. Returns whether that is new."""
        texts = self._problems.setdefault((plugin.name, plugin.package), [])
        is_new = text not in texts
        if is_new:
            texts.append(text)
        return is_new

    def implementations(self, hook: str) -> list[tuple[Plugin, Callable[..., Any]]]:
        """(plugin, what it implements the hook with, to be called with all arguments of the hook), the last registered first."""
        self._load_plugins()
        return self._implementations(hook)

    def notify(self, step: Step) -> None:
        """Hand the record of a step to everyone who observes it. What they raise decides about nothing."""
        for plugin, tell in self._observers.get(step.name, ()):
            try:
                tell(step=step)
            except (Exception, SystemExit) as error:  # the user's numbers are right all the same
                if plugin not in self._complained:
                    self._complained.add(plugin)
                    notice(
                        f"{plugin.said} observes the step {step.name!r} and raised {in_short(error)}; the numbers are "
                        f"right, and what it tells of them is not complete"
                    )

    # -- loading ------------------------------------------------------------------------------

    def _load_plugins(self) -> None:
        if self._loaded:
            return
        with undivided(), self._lock:
            if self._pending is None:
                self._pending = self._found()
            while self._pending:  # a plugin that asks for the others when it is imported goes on here
                plugin, point = one = self._pending.pop(0)
                try:
                    with foreign_code(PluginError, f"{plugin.said} failed on import of {point.value}"):
                        plugin.source = point.load()
                    self._add(plugin)
                except PluginError as error:
                    self.complain(plugin, str(error))
                except Exception as error:  # none that is foreseen; it must not stop the others all the same
                    self.complain(plugin, f"{plugin.said} cannot be registered: {in_short(error)}")
                except BaseException:  # the user's interrupt: the next who asks goes on where this one was
                    self._pending.insert(0, one)
                    self._loaded = False
                    raise
            self._loaded = True

    def _found(self) -> list[tuple[Plugin, importlib.metadata.EntryPoint]]:
        """The entry points, our own first, then by package and name."""
        own = _own_modules()
        found = []
        for point in self._entry_points if self._entry_points is not None else self._installed():
            package = _package_of(point)
            is_own = point.value in own and (point.dist is None or package == DISTRIBUTION)
            found.append((Plugin(point.name, package or point.value, is_own), point))
        return sorted(found, key=lambda one: (not one[0].is_own, one[0].package, one[0].name, one[1].value))

    def _installed(self) -> Iterator[importlib.metadata.EntryPoint]:
        try:
            yield from importlib.metadata.entry_points(group=GROUP)
            return
        except Exception:
            pass  # one damaged package is enough; which it is shows where each is asked alone
        known = set()
        for distribution in importlib.metadata.distributions():
            try:
                name = distribution.name
                points = list(distribution.entry_points.select(group=GROUP))
            except Exception as error:
                path = os.path.realpath(str(getattr(distribution, "_path", distribution)))
                self.complain(
                    Plugin(path, path, False), f"the entry points of {path} cannot be read: {in_short(error)}"
                )
                continue
            if name not in known:
                known.add(name)
                yield from points

    def _hooks_of(self, source: Any) -> _Hooks | None:
        return next((hooks for hooks in self._taken.values() if hooks._plugin.source is source), None)

    def _add(self, plugin: Plugin) -> None:
        twice = self._hooks_of(plugin.source)
        if twice is not None:
            raise PluginError(f"{plugin.said} is {twice._plugin.said}, which is registered already")
        if plugin.key in self._taken:
            raise PluginError(
                f"{plugin.said}: there is another of that name already; take it out with unregister(…), or "
                f"register this one under another name"
            )
        hooks = _Hooks(plugin, _routines(plugin))
        self._taken[plugin.key] = hooks
        try:
            with foreign_code(PluginError, plugin.said):
                self._manager.register(hooks, plugin.key)
            for owner, declare in self._implementations("gradbridge_backend"):
                if owner is plugin:
                    with foreign_code(PluginError, f"{plugin.said}: gradbridge_backend() failed"):
                        backend = declare()
                    self._declare(backend, plugin)
        except BaseException:
            self._remove(hooks)
            raise
        self._look_for_observers()

    def _remove(self, hooks: _Hooks) -> None:
        if self._manager.is_registered(hooks):
            self._manager.unregister(hooks)
        plugin = hooks._plugin
        del self._taken[plugin.key]
        for name in [name for name, (_, owner) in self._backends.items() if owner is plugin]:
            del self._backends[name]
            self._forget_backend(name)
        self._problems.pop((plugin.name, plugin.package), None)
        self._look_for_observers()

    def _forget_backend(self, name: str) -> None:
        """Drop what was loaded of a backend."""

    def _declare(self, backend: Any, plugin: Plugin) -> None:
        said = plugin.said
        if type(backend) is not Backend:  # of a subclass anything may be a property that raises
            raise PluginError(
                f"{said}: gradbridge_backend() must return a gradbridge.registry.Backend, "
                f"got {type(backend).__name__}"
            )
        if backend.protocol != PROTOCOL_VERSION:
            raise PluginError(
                f"{said} was written for adapter protocol {backend.protocol}, this gradbridge speaks "
                f"{PROTOCOL_VERSION}; install a matching version of one of them"
            )
        fault = fault_of(backend)
        if fault:
            raise PluginError(f"{said} declares a Backend whose {fault}")
        if backend.name in self._backends:
            _, other = self._backends[backend.name]
            raise PluginError(
                f"{said} claims the backend name {backend.name!r}, which package {other.package!r} has already; "
                f"it stays with {other.package!r}"
            )
        self._backends[backend.name] = (backend, plugin)

    def _implementations(self, hook: str) -> list[tuple[Plugin, Callable[..., Any]]]:
        found = []
        for impl in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            found.append((impl.plugin._plugin, _taking_all(impl.function, impl.argnames)))
        return found

    def _look_for_observers(self) -> None:
        self._observers = {
            name.removeprefix("gradbridge_"): self._implementations(name) for name in hookspecs.step_hooks()
        }
        self.observed = any(self._observers.values())
        self._complained &= {plugin for some in self._observers.values() for plugin, _ in some}


def _taking_all(function: Callable[..., Any], names: Iterable[str]) -> Callable[..., Any]:
    """The function, called with all arguments of its hook, of which it takes some."""

    def call(**arguments: Any) -> Any:
        return function(*[arguments[name] for name in names])

    return call


def _package_of(point: importlib.metadata.EntryPoint) -> str | None:
    """The name of the distribution that an entry point is from; None where it is from none, or that has no name."""
    try:
        return point.dist.name if point.dist is not None else None
    except Exception:  # its metadata are not there
        return None


def _own_modules() -> set[str]:
    """What the entry points of core's distribution name."""
    try:
        points = importlib.metadata.distribution(DISTRIBUTION).entry_points
    except importlib.metadata.PackageNotFoundError:
        return set()
    return {point.value for point in points if point.group == GROUP}


def _routines(plugin: Plugin) -> dict[str, Any]:
    """{name: function} of what a plugin marks with `hookimpl`, each of a hook that there is.

    Raises:
        PluginError: it implements none, or one that there is not, or something that cannot be called as one.
    """
    said, source = plugin.said, plugin.source
    with foreign_code(PluginError, said):
        named = {name: getattr(source, name, None) for name in dir(source)}
        options = {name: getattr(value, f"{GROUP}_impl", None) for name, value in named.items()}
    marked = {name: own for name, own in options.items() if isinstance(own, dict)}
    for name, own in marked.items():
        hook = own.get("specname") or name
        if hook not in HOOKS:
            hint = suggestion(hook, HOOKS).replace("'", "") or f"known hooks: {', '.join(sorted(HOOKS))}"
            raise PluginError(f"{said} implements a hook {hook!r} that does not exist; {hint.rstrip()}")
        if inspect.isclass(source) and inspect.isfunction(inspect.getattr_static(source, name, None)):
            raise PluginError(f"{said} is a class, and {hook} a method of its objects; register one of these")
        if not (inspect.isfunction(named[name]) or inspect.ismethod(named[name])):
            raise PluginError(
                f"{said} implements {hook} by a {type(named[name]).__name__}, not a function; write def {hook}(…)"
            )
        if own.get("hookwrapper") or own.get("wrapper"):
            raise PluginError(
                f"{said} wraps {hook}, and the hooks of gradbridge are not wrapped; leave wrapper= out"
            )
    for hook in HOOKS:
        if hook not in marked and callable(named.get(hook)):
            raise PluginError(
                f"{said} has a function {hook} without the mark of a hook; write @hookimpl above it"
            )
    if not marked:
        raise PluginError(f"{said} implements no hook; known hooks: {', '.join(sorted(HOOKS))}")
    return {name: named[name] for name in marked}
