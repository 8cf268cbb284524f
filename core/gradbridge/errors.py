"""Every error that gradbridge raises itself, and how they hang together.

::

    GradbridgeError
    ├── BackendError                     a backend is not available
    │   ├── UnknownBackendError          (KeyError)      no backend of that name
    │   ├── BackendUnavailableError      (ImportError)   its framework is missing or broken
    │   └── UnknownModelError            (TypeError)     no backend recognises the model
    ├── PluginError                      a plugin that does not keep the hook contract
    ├── BorderError                      what was handed in or out does not fit
    │   ├── ParamsShapeError             (ValueError)
    │   ├── ParamsDtypeError             (TypeError)
    │   ├── NonFiniteParamsError         (ValueError)    NaN or infinity, when asked to check
    │   ├── LayoutError                  (ValueError)    a tree that does not fit the layout
    │   ├── InputError                   (TypeError, ValueError)
    │   └── OutputError                  (TypeError)     the model returned something not an array
    │       └── GradientMismatchError    a backend returned other gradients than it was asked for
    ├── GuestError                       (RuntimeError)  the model itself failed
    ├── AuditError                       (RuntimeError)  the model is not a function of its arguments
    ├── ForkError                        (RuntimeError)  a framework that was started before this process was forked
    ├── HostError                        (TypeError)     which system differentiates is unclear, or it cannot do that
    │   └── ReentryError                 (RuntimeError)  a framework would wait for itself: a deadlock
    ├── OptionError                      (TypeError, ValueError) an option that the backend does not have
    └── DerivativeError                  a derivative that does not exist or is not available
        ├── NotDifferentiableError       (TypeError)
        ├── Unsupported                  (NotImplementedError)  an operation that the guest does not offer
        │   └── HigherOrderError         a derivative of its derivative
        ├── MissingVJPError              (NotImplementedError)
        ├── VJPSignatureError            (TypeError)     a written VJP of the wrong arity
        ├── GradientShapeError           (ValueError)    a written VJP returned a wrong shape
        └── CotangentMismatchError       (ValueError)

The built-in class in parentheses is a second base, so that code which already
catches ``ValueError`` or ``ImportError`` keeps working.

A message says what was asked, what was expected, what came, and what to do next.
"""

from __future__ import annotations


class GradbridgeError(Exception):
    """Base of every error that gradbridge raises on purpose."""


class BackendError(GradbridgeError):
    """A backend is not available."""


class UnknownBackendError(BackendError, KeyError):
    """No registered backend has the name that was asked for."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class BackendUnavailableError(BackendError, ImportError):
    """The backend exists, but its framework is not installed or does not import."""


class UnknownModelError(BackendError, TypeError):
    """No backend recognises the class of the model."""


class PluginError(GradbridgeError):
    """A plugin breaks the hook contract; the message names its package."""


class BorderError(GradbridgeError):
    """A value that crosses a border does not fit what is expected there."""


class ParamsShapeError(BorderError, ValueError):
    """The parameter vector has the wrong length or the wrong number of axes."""


class ParamsDtypeError(BorderError, TypeError):
    """The parameter vector has a dtype that is not a real number."""


class NonFiniteParamsError(BorderError, ValueError):
    """The parameter vector holds NaN or infinity, and the bridge was asked to check."""


class LayoutError(BorderError, ValueError):
    """A tree of arrays does not fit a parameter layout."""


class InputError(BorderError, TypeError, ValueError):
    """An input of the model has a dtype or shape that it cannot take."""


class OutputError(BorderError, TypeError):
    """The model returned something that is not an array or a container of arrays."""


class GradientMismatchError(OutputError):
    """A backend returned other gradients or tangents than it was asked for: too few, of another shape or dtype."""


class GuestError(GradbridgeError, RuntimeError):
    """The model itself raised; the original error is the cause."""


class AuditError(GradbridgeError, RuntimeError):
    """The model does not compute with its arguments alone: found out at its first differentiated call."""


class ForkError(GradbridgeError, RuntimeError):
    """A framework was started before this process was forked, and would wait for its threads for ever."""


class HostError(GradbridgeError, TypeError):
    """It is unclear which system differentiates a call, or that system cannot do what was asked of it."""


class ReentryError(HostError, RuntimeError):
    """A framework would be called back while it waits for that very call: a deadlock."""


class OptionError(GradbridgeError, TypeError, ValueError):
    """An option that the backend does not have, or a value that it cannot take."""


class DerivativeError(GradbridgeError):
    """A derivative that does not exist, or that the guest cannot give."""


class NotDifferentiableError(DerivativeError, TypeError):
    """Neither zero nor a number would be right here: the derivative does not exist."""


class Unsupported(DerivativeError, NotImplementedError):
    """An operation that a guest does not offer, with the reason; core computes the derivative in another way where it can."""


class HigherOrderError(Unsupported):
    """A derivative of a derivative that the guest cannot give."""


class MissingVJPError(DerivativeError, NotImplementedError):
    """A function without a framework has no written gradient for an argument."""


class VJPSignatureError(DerivativeError, TypeError):
    """A written VJP does not take (ans, *the function's arguments)."""


class GradientShapeError(DerivativeError, ValueError):
    """A written VJP returned a gradient whose shape is not its argument's."""


class CotangentMismatchError(DerivativeError, ValueError):
    """A cotangent does not have its output's shape, or there are too many or too few."""


class GradbridgeWarning(UserWarning):
    """Something that works, but perhaps not as was meant; said once."""


#: {optional operation of an adapter: what is said of a backend that does not offer it}.
NOT_OFFERED = {
    "backward_many": "pulls one cotangent at a time",
    "row_jacobians": "does not compute per-example Jacobians",
    "pushforward": "has no forward mode",
    "pushforward_many": "pushes one tangent at a time",
    "pullback": "cannot differentiate a gradient again",
    "output_spec": "knows the shapes of its outputs only after it has run",
}
