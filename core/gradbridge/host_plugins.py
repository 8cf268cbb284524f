"""Host halves among the plugins: which backend an array is of, who makes layers of a bridge."""

from __future__ import annotations

import importlib.metadata
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from gradbridge.errors import BackendUnavailableError, UnknownBackendError
from gradbridge.host import Host
from gradbridge.installed import has_module
from gradbridge.plugins import Plugins


class HostPlugins(Plugins):
    """The half of `Registry` that knows hosts.

    Args:
        entry_points: the plugins to know.
    """

    def __init__(self, entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> None:
        super().__init__(entry_points)
        self._halves: dict[tuple[str, str], Any] = {}
        #: (the backends that it holds for, {class: the backend whose arrays it is one of}).
        self._hosts_of: tuple[Any, dict[type, str | None]] = (None, {})

    @abstractmethod
    def _half(self, name: str, role: str) -> Any:
        """A half of a backend, loaded."""

    def host(self, name: str) -> Host:
        """The host half of a backend, importing its framework.

        Raises:
            UnknownBackendError, BackendUnavailableError
        """
        half: Host = self._half(name, "host")
        return half

    def host_of(self, kind: type) -> str | None:
        """The backend whose arrays a class is one of, by the classes in its MRO; imports no framework.

        Ours keep the arrays of their frameworks; None where it is nobody's.
        """
        declared = tuple(self._backends.values())
        if self._hosts_of[0] != declared:
            self._load_plugins()
            self._hosts_of = tuple(self._backends.values()), {}
        known = self._hosts_of[1]
        if kind not in known:
            known[kind] = self._looked_up(kind)
        return known[kind]

    def _looked_up(self, kind: type) -> str | None:
        for cls in kind.__mro__:
            names = [name for name, (b, _) in self._backends.items() if b.host and qualified(cls) in b.arrays]
            if names:
                return min(names, key=lambda name: (not self._backends[name][1].is_own, name))
        return None

    def load_compiling_hosts(self) -> None:
        """Load the host halves whose framework has a compiler, and is there. What cannot load is asked for later."""
        for name, (backend, _) in list(self._backends.items()):
            is_there = backend.framework is not None and backend.framework[0] in sys.modules
            if backend.has_compiler and is_there and (name, "host") not in self._halves:
                with suppress(BackendUnavailableError):
                    self.host(name)

    def wrapper(self, name: str) -> Callable[..., Any]:
        """What makes a layer of a bridge: of several backends that have it ours first, and what is in use or installed.

        Args:
            name: as its backend declares it, ``"as_module"``.

        Raises:
            UnknownBackendError: no backend has it.
            BackendUnavailableError
        """
        self._load_plugins()
        found = [backend for backend in self._backends if name in self._backends[backend][0].wrappers]
        if not found:
            raise UnknownBackendError(f"no backend that is installed makes layers by {name}")

        def rank(backend: str) -> tuple[bool, bool, bool]:
            declared, plugin = self._backends[backend]
            module = None if declared.framework is None else declared.framework[0]
            absent = module is not None and not has_module(module)
            return not plugin.is_own, absent, module is not None and module not in sys.modules

        half: Callable[..., Any] = self._half(min(found, key=rank), name)
        return half


def qualified(cls: type) -> str:
    """The name of a class with that of its module."""
    return f"{cls.__module__}.{cls.__qualname__}"
