"""`gradbridge new-backend NAME`: an installable package for another framework, with the steps to fill in."""

from __future__ import annotations

import importlib.util
import keyword
import os
import pathlib
import re
from string import Template

from gradbridge.errors import OptionError
from gradbridge.registry import Registry, default_registry

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")

_TEMPLATES = {
    "pyproject.toml": """\
[build-system]
requires = ["hatchling>=1.26"]
build-backend = "hatchling.build"

[project]
name = "gradbridge-$name"
version = "0.1.0"
description = "$name as a gradbridge guest."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["gradbridge", "$name"]  # the framework as its distribution is called

# The door by which gradbridge finds this package.
[project.entry-points.gradbridge]
$name = "gradbridge_$name"

[tool.hatch.build.targets.wheel]
packages = ["src/gradbridge_$name"]
""",
    "README.md": """\
# gradbridge-$name

$name as a gradbridge guest.

1. `pip install -e .` in this folder; `gradbridge backends` then lists $name.
2. Look over `src/gradbridge_$name/__init__.py`, and fill in the steps in `guest.py`.
3. Build the scenarios of the kit in `conformance.py`, as many as $name can.
4. `gradbridge check $name`, or `pytest`.
""",
    "src/gradbridge_$name/__init__.py": '''\
"""$name as a gradbridge backend. This module imports no framework: it is loaded to list what there is."""

from gradbridge.hookspecs import hookimpl
from gradbridge.registry import Backend


@hookimpl
def gradbridge_backend() -> Backend:
    """Declare the backend."""
    return Backend(
        name="$name",
        # The module to import, and the distribution that carries it; None for a backend that needs none.
        framework=("$name", "$name"),
        install="pip install gradbridge-$name",
        guest="gradbridge_$name.guest:adapt",
        models=(),  # qualified names of model classes, e.g. "$name.nn.Module": found in a model's MRO
    )
''',
    "src/gradbridge_$name/guest.py": '''\
"""$name as a guest: functions of its arrays, with or without a tree of parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradbridge import trees
from gradbridge.errors import GradbridgeError, GuestError, OptionError
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import Adapter, Array, GuestOptions, Signature, refuse_unknown_options

DTYPES = ("float64", "float32")  # what $name computes in


def adapt(model: Any, options: GuestOptions) -> FunctionAdapter:
    """Make an adapter of a model: the guest half.

    Args:
        model: a callable; with `options.params`, of (parameter tree, *inputs).
        options: dtype, device, mode, and `extra` for options of your own. What is asked for and not done
            is refused. `mode` matters only to models with random numbers or moving statistics.

    Raises:
        OptionError: an option that it does not have.
    """
    refuse_unknown_options("$name", options.extra, ())
    if options.dtype is not None and options.dtype not in DTYPES:
        raise OptionError(f"dtype must be one of {', '.join(DTYPES)}, got {options.dtype!r}")
    if options.device is not None:  # or keep it, if $name has devices
        raise OptionError(f"backend '$name' has no device, got {options.device!r}")
    if not callable(model):
        raise OptionError(f"backend '$name' bridges callables, got a {type(model).__name__}")
    return FunctionAdapter(model, options)


class FunctionAdapter(Adapter):
    """A callable of $name arrays. The laws that each step keeps are in `gradbridge.protocol.Adapter`."""

    def __init__(self, function: Callable[..., Any], options: GuestOptions) -> None:
        self.label = getattr(function, "__name__", type(function).__name__)
        self.layout = ParameterLayout.empty()
        self._function = function
        self._has_params = options.params is not None
        self._dtype = options.dtype
        self._present = np.empty(0)
        if self._has_params:
            self.layout = ParameterLayout.of_tree(options.params)
            self._present = self.layout.ravel(options.params)

    def params(self) -> Array:
        """The model's present parameters, (P,) float64."""
        return self._present.copy()

    def model(self, params: Array) -> Any:
        """A native model holding these parameters: the function with its first argument filled in."""
        if not self._has_params:
            return self._function
        tree = self._tree(self.update(params))
        return lambda *args, **kwargs: self._function(tree, *args, **kwargs)

    def update(self, params: Array) -> list[Any]:
        """Step 1: the flat vector → one native array per parameter, copied, in self._dtype or the layout's.

        `model` and `forward` put them into the user's tree; whatever else you return, change them too.
        """
        raise NotImplementedError(
            "cut params with self.layout.unravel(params), and make native arrays of the pieces"
        )

    def forward(
        self, loaded: list[Any], inputs: Sequence[Any], signature: Signature, wrt: tuple[int, ...]
    ) -> tuple[Any, Any]:
        """Step 2: outputs as NumPy arrays that the caller owns, and residuals (None if wrt is empty)."""
        native = [self._native(leaf) for leaf in inputs]
        args, kwargs = signature.bind(native)
        if self._has_params:
            args = (self._tree(loaded), *args)
        output = self._run(args, kwargs)
        raise NotImplementedError(
            "see to it that $name records what `backward` needs; give the outputs as a tree of new NumPy arrays, "
            "and keep the recorded call as the residuals, never on self"
        )

    def zero(self, residuals: Any) -> None:
        """Step 3: clear gradients that $name adds up. Leave it out if it returns them instead."""

    def backward(self, residuals: Any, cotangents: Sequence[Array], wrt: tuple[int, ...]) -> list[Array]:
        """Step 4: a new NumPy array per position, of that argument's shape; zeros for no influence.

        Position 0 is the params: (P,), each gradient flattened in C order. Position i is inputs[i - 1].
        It may be called again with other cotangents, and must give the same for the same ones.
        """
        raise NotImplementedError("pull the cotangents back through the recorded call")

    # If $name can differentiate its gradients, implement `pullback` too ("Second order" in gradbridge's
    # docs/writing-a-backend.md). Without it a second derivative raises HigherOrderError, which is honest.
    # If $name keeps global state, let its code take turns: these methods are called from many threads.

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function; what it raises itself becomes an error of ours, with the shapes that came."""
        try:
            return self._function(*args, **kwargs)
        except GradbridgeError:
            raise
        except Exception as error:
            shapes = ", ".join(str(getattr(a, "shape", type(a).__name__)) for a in args)
            raise GuestError(
                f"{self.label} failed on inputs {shapes}: {type(error).__name__}: {error}"
            ) from error

    def _native(self, leaf: Any) -> Any:
        """An input leaf as the function takes it; what is no array goes through."""
        if not isinstance(leaf, np.ndarray):
            return leaf
        # A copy, because the caller may change its array; contiguous and of this machine's byte order.
        own = np.array(leaf, dtype=leaf.dtype.newbyteorder("="), order="C")
        raise NotImplementedError(
            "make a native array of `own`: a floating one in self._dtype, if that is given"
        )

    def _tree(self, pieces: list[Any]) -> Any:
        return trees.unflatten(self.layout.structure, pieces)
''',
    "src/gradbridge_$name/conformance.py": '''\
"""The scenarios of the conformance kit in $name. `gradbridge.testing` tells what each computes."""

from __future__ import annotations

from typing import Any, ClassVar

from gradbridge.testing import BackendUnderTest
from gradbridge_$name.guest import DTYPES


class UnderTest(BackendUnderTest):
    """Begin with energy(), a function without parameters, then mlp(); leave out what $name cannot do."""

    backend: ClassVar[str] = "$name"
    dtypes: ClassVar[tuple[str, ...]] = DTYPES  # the most precise first: the laws are checked in it
    reasons: ClassVar[dict[str, str]] = {}  # {"dropout": "$name has no random numbers"}

    def energy(self) -> Any:
        """x, y of one shape ↦ Σ x² y."""
        return lambda x, y: (x**2 * y).sum()
''',
    "tests/test_conformance.py": '''\
"""The laws, on $name: one test per law and scenario."""

from gradbridge.testing import ConformanceSuite


class Test$title(ConformanceSuite):
    backend = "$name"
''',
}


def new_backend(
    name: str, folder: str | os.PathLike[str] | None = None, registry: Registry | None = None
) -> list[pathlib.Path]:
    """Write the package ``gradbridge-NAME``.

    Args:
        name: of the backend: what users will write in ``backend=``. It becomes part of the names of a
            distribution and of a package.
        folder: where; by default ``gradbridge-NAME`` in the working directory. Must not hold files.
        registry: whose names are taken.

    Returns:
        The files written.

    Raises:
        OptionError: the name cannot be or is taken, or the folder holds files.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise OptionError(
            f"a backend's name is lower-case letters and digits, with single underscores between them, such as "
            f"'mygrad', and no word of Python; got {name!r}"
        )
    known = registry if registry is not None else default_registry()
    if name in known.names() or name in known.problems:
        raise OptionError(
            f"there is a backend {name!r} already, and a name belongs to one package; choose another"
        )
    package = f"gradbridge_{name}"
    if importlib.util.find_spec(package) is not None:
        raise OptionError(
            f"a package {package} is installed already, and yours would hide it; choose another name"
        )
    root = pathlib.Path(folder if folder is not None else f"gradbridge-{name}")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise OptionError(f"{root} exists and is not empty; choose another folder")
    written = []
    for path, text in _TEMPLATES.items():
        target = root / Template(path).substitute(name=name)
        target.parent.mkdir(parents=True, exist_ok=True)
        filled = Template(text).substitute(name=name, title=name.title().replace("_", ""))
        target.write_text(filled, encoding="utf-8")
        written.append(target)
    return written
