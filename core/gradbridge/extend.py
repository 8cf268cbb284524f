"""All that the author of a backend or a plugin imports, but for the kit, which is `gradbridge.testing`.

What stands here is kept stable; where it is defined may change. A backend is, from the smaller to
the larger:

- a declaration: `Backend`, returned by a `hookimpl` of ``gradbridge_backend``;
- a `Framework`, the autodiff primitives of one system, and a `Model`, how one kind of native model is
  called (`FunctionModel` for functions of arrays), joined by `FunctionalAdapter`;
- or, for unusual needs, an `Adapter` written by hand.

`docs/writing-a-backend.md` leads through them.
"""

from gradbridge import trees
from gradbridge.arrays import aligned_copy, as_numpy, owned
from gradbridge.borders import Border
from gradbridge.call_spec import ArgumentNames, CallSpec, argument_names
from gradbridge.constants import constant_key
from gradbridge.declarations import Backend, Step
from gradbridge.errors import (
    GradbridgeError,
    GuestError,
    HigherOrderError,
    HostError,
    InputError,
    NotDifferentiableError,
    OptionError,
    OutputError,
    ReentryError,
    UnknownModelError,
    Unsupported,
)
from gradbridge.execution.evaluation import Call
from gradbridge.execution.functional import FunctionalAdapter
from gradbridge.forks import Runtime
from gradbridge.framework import (
    Computation,
    Form,
    Framework,
    FrameworkBorder,
    Function,
    Model,
    Program,
    RunAgain,
    TapeProgram,
)
from gradbridge.functions import FunctionModel
from gradbridge.hookspecs import hookimpl
from gradbridge.host import Host, Reading
from gradbridge.layout import Array, ParameterLayout
from gradbridge.lifting import LiftingHost, Node, Run, Store
from gradbridge.options import GuestOptions, floating_name, refuse_params, refuse_unknown_options
from gradbridge.placed import Piece, PlacedArray
from gradbridge.protocol import Adapter, ArraySpec, Traits
from gradbridge.wording import first_line, given, in_short

__all__ = [
    "Adapter",
    "ArgumentNames",
    "Array",
    "ArraySpec",
    "Backend",
    "Border",
    "Call",
    "CallSpec",
    "Computation",
    "Form",
    "Framework",
    "FrameworkBorder",
    "Function",
    "FunctionModel",
    "FunctionalAdapter",
    "GradbridgeError",
    "GuestError",
    "GuestOptions",
    "HigherOrderError",
    "Host",
    "HostError",
    "InputError",
    "LiftingHost",
    "Model",
    "Node",
    "NotDifferentiableError",
    "OptionError",
    "OutputError",
    "ParameterLayout",
    "Piece",
    "PlacedArray",
    "Program",
    "Reading",
    "ReentryError",
    "Run",
    "RunAgain",
    "Runtime",
    "Step",
    "Store",
    "TapeProgram",
    "Traits",
    "UnknownModelError",
    "Unsupported",
    "aligned_copy",
    "argument_names",
    "as_numpy",
    "constant_key",
    "first_line",
    "floating_name",
    "given",
    "hookimpl",
    "in_short",
    "owned",
    "refuse_params",
    "refuse_unknown_options",
    "trees",
]
