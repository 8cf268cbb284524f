"""The entry point for models: `bridge`, and the `Bridge` that it returns."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from gradbridge import borders, trees
from gradbridge.audit.examination import audited
from gradbridge.audit.findings import Audit
from gradbridge.audit.report import AuditReport, Finding
from gradbridge.call_spec import CallSpec
from gradbridge.capabilities import Capabilities, capabilities_of
from gradbridge.choice import adapter_of
from gradbridge.errors import OptionError
from gradbridge.execution.calling import OF_PROCESS, Calling, numbers
from gradbridge.execution.chunks import ChunkedAdapter
from gradbridge.execution.constant_arguments import ConstantArguments
from gradbridge.execution.noise import NoiseSource
from gradbridge.execution.precision import Precisions
from gradbridge.execution.reuse import Memory
from gradbridge.execution.settings import BridgeSettings
from gradbridge.execution.shapes import output_spec, refuse_no_shapes
from gradbridge.execution.steps import check_results
from gradbridge.layout import Array, ParameterLayout
from gradbridge.lifting.choosing import AUTO, AUTOGRAD
from gradbridge.option_values import check_options
from gradbridge.protocol import Adapter, ArraySpec, GuestOptions
from gradbridge.registry import Registry, default_registry
from gradbridge.saving import load_params, save_params
from gradbridge.unread import send_unread


class Bridge(Calling):
    """A guest model as a differentiable function of the host: ``f(params, *inputs)``.

    Args:
        adapter: the guest model.
        host: name of the backend whose host half lifts it, or ``"auto"``.
        mode: ``"eval"`` or ``"train"``, as the adapter was made for.
        seed, noise: where the bridge's own noise starts; ``"frozen"``, ``"per_params"`` or ``"per_call"``.
        check_finite: refuse params with NaN or infinity, naming the first.
        reuse: how many evaluations to remember; see `gradbridge.reuse`.
        nondiff: positions and names of inputs that are held constant.
        first_input: the position of the first one; 0 where there are no params before it.
        outputs: shapes and dtypes of the outputs, where the guest does not know them before it runs.
        audit: ``"first"`` looks at the model at its first differentiated call, ``"off"`` does not.
        follows: whether the model computes in the dtype of the params that it is called with, not in the adapter's.
        registry: where host halves come from.
    """

    def __init__(
        self,
        adapter: Adapter,
        host: str = AUTO,
        *,
        mode: str = "eval",
        seed: int = 0,
        noise: str = "frozen",
        check_finite: bool = False,
        reuse: int = 0,
        nondiff: Any = (),
        first_input: int = 1,
        outputs: Any = None,
        audit: str = "first",
        follows: bool = False,
        registry: Registry | None = None,
    ) -> None:
        check_options(host=host, mode=mode, seed=seed, noise=noise, check_finite=check_finite, audit=audit)
        check_options(registry=registry)
        refuse_no_shapes(outputs, adapter.label)
        self._made_with = {
            "host": host, "mode": mode, "seed": seed, "noise": noise, "check_finite": check_finite, "reuse": reuse,
            "nondiff": nondiff, "first_input": first_input, "outputs": outputs, "audit": audit, "follows": follows,
        }  # fmt: skip
        self._precisions, self._follows, self._outputs = Precisions(adapter, follows), follows, outputs
        self._host_name = host
        self._mode, self._seed, self._noise_kind = mode, int(seed) % 2**63, noise
        self._checks_finite = check_finite
        self._memory = Memory.of(reuse, adapter, mode)
        self._audit = Audit(audit == "first")
        self._constants: ConstantArguments | None = None
        if not (isinstance(nondiff, tuple) and not nondiff):
            self._constants = ConstantArguments(nondiff, adapter.argument_names, first_input, adapter.label)
        self._source = NoiseSource(self._seed, "frozen" if mode == "eval" else noise)
        self._join(registry if registry is not None else default_registry())

    def _join(self, registry: Registry) -> None:
        """Take what belongs to the process: the host half, and who observes."""
        self._registry = registry
        usual = registry.backend(AUTOGRAD if self._host_name == AUTO else self._host_name).name
        self._host_name = AUTO if self._host_name == AUTO else usual
        settings = BridgeSettings(
            registry,
            self._source.draw,
            self._checks_finite,
            self._memory,
            self._audit,
            self._precisions,
            self._follows,
            self._mode,
            self._noise_kind,
            str(self._constants or ""),
            self._outputs,
        )
        self._serve(registry, registry.host(usual), settings)
        send_unread(type(self), self._adapter.traits.runtime)

    @property
    def adapter(self) -> Adapter:
        """The guest model's adapter, for those who write backends."""
        return self._adapter

    @property
    def layout(self) -> ParameterLayout:
        """Names, shapes and dtypes of the parameters, in the order of the flat vector."""
        return self._adapter.layout

    @property
    def params(self) -> Any:
        """The model's present parameters, (P,) float64, a new array: NumPy's, or with ``host=`` named that host's.

        Raises:
            GradientMismatchError: its backend returns other weights than its layout says.
        """
        adapter, layout = self._adapter, self.layout
        weights = adapter.weights()
        check_results(adapter, weights, range(len(layout)), (), "weight", "parameter")
        weights = [borders.Border.view(adapter.border, w) if hasattr(w, "shape") else w for w in weights]
        check_results(adapter, weights, range(len(layout)), layout.shapes, "weight", "parameter")
        return self._host.array(layout.join(weights))

    @property
    def memory(self) -> Memory | None:
        """What ``reuse=`` remembers: its `hits` and `misses`, and `forget()`. None without reuse."""
        return self._memory

    def model(self, params: Any) -> Any:
        """A native model of the guest's framework holding these parameters.

        Args:
            params: as for a call: (P,) real, or a tree of arrays.

        Returns:
            A new model; the one that was bridged is not touched.

        Raises:
            ParamsShapeError, ParamsDtypeError, LayoutError, InputError
        """
        vector, dtype = borders.params_vector(self._numbers(params), self.layout, self._adapter.label)
        return self._precisions.of(dtype).adapter.model(self.layout.cut(vector))

    @property
    def capabilities(self) -> Capabilities:
        """What works through this bridge, what does not and why, and what it costs; prints as a table."""
        title = f"{self._adapter.label}, host {self._host_name}"
        return capabilities_of(self._adapter, title, self._settings, self._latest, self._outputs is not None)

    def audit(
        self, params: Any, *inputs: Any, told: Callable[[Finding], None] | None = None, **kwargs: Any
    ) -> AuditReport:
        """Find out all that can be found out about the model at one point (law 10).

        Whether it computes with the params and inputs alone and gives the same again; its precision; its
        gradient against differences, its JVP, second and third derivatives and Jacobians against
        independent ones; other batch sizes, dtypes and threads; and whether the user's model is as it was.
        It makes some hundred evaluations, changes nothing, and refuses nothing.

        Args:
            params, *inputs, **kwargs: as for a call.
            told: called with each row as soon as it is known, to show progress.

        Returns:
            The rows; prints as a table, and is true where nothing is wrong. What a difference of values does not
            confirm is a note: a model may have a gradient of its own (straight-through estimators).
        """
        title = f"audit of {self._adapter.label}, {self.layout.size} params"
        return audited(self._point(params, inputs, kwargs), lambda: self.params.tobytes(), title, told)

    def output_spec(self, *inputs: Any, **kwargs: Any) -> Any:
        """Shapes and dtypes of the outputs, without computing them.

        Args:
            *inputs, **kwargs: as for a call, without the params; an `ArraySpec` may stand for an array.

        Returns:
            The output tree, with an `ArraySpec` in place of each array: dtypes are the guest's own, before
            they are brought to the host's.

        Raises:
            Unsupported: they are not known before the model has run; say them with ``outputs=``.
            GuestError, InputError: such inputs do not fit the model.
        """
        leaves, structure = trees.flatten((tuple(map(numbers, inputs)), kwargs))
        specs = [
            ArraySpec.of(x) if hasattr(x, "shape") and not isinstance(x, ArraySpec) else x for x in leaves
        ]
        return output_spec(self._adapter, self._outputs, specs, CallSpec(structure, self._seed))

    def save(self, path: str | os.PathLike[str], params: Any) -> None:
        """Write parameters to a safetensors file, with their layout.

        Args:
            path: the file. It is written whole or not at all; where it is a link, what that leads to is
                written, and a file that is there keeps its mode.
            params: as for a call: (P,) real, or a tree of arrays.

        Raises:
            ParamsShapeError, ParamsDtypeError, LayoutError, InputError: they do not fit the layout.
            ParamsFileError: the path is not a regular file.
            OSError: it cannot be written there.
        """
        save_params(path, self._numbers(params), self.layout)

    def load(self, path: str | os.PathLike[str], *, names: bool = True) -> Array:
        """Read parameters that `save` wrote, for this model.

        Args:
            path: the file.
            names: False compares shapes and order alone, not the parameters' names.

        Returns:
            (P,) float64.

        Raises:
            ParamsFileError: no such file of ours, or of another model; the first difference is named.
        """
        return load_params(path, self.layout, names=names)

    def __repr__(self) -> str:
        mode = "" if self._mode == "eval" else f", mode {self._mode}, noise {self._noise_kind}"
        return f"<Bridge over {self._adapter.label}: {self.layout.size} params, host {self._host_name}{mode}>"

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in OF_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._join(self._registry)  # of a copy the same one, of a pickled bridge the default of this process


def bridge(
    model: Any,
    *,
    backend: str | None = None,
    host: str = AUTO,
    params: Any = None,
    dtype: Any = None,
    device: Any = None,
    mode: str = "eval",
    seed: int = 0,
    noise: str = "frozen",
    check_finite: bool = False,
    reuse: int = 0,
    rows_per_chunk: int | None = None,
    nondiff: Any = (),
    audit: str = "first",
    outputs: Any = None,
    registry: Registry | None = None,
    **options: Any,
) -> Bridge:
    """Make a model of another framework a differentiable function of the host.

    ::

        f = gradbridge.bridge(torch.nn.Linear(3, 1), dtype="float64")
        autograd.grad(lambda p: f(p, X).sum())(f.params)

    Args:
        model: a native model, or a function of ``(parameter pytree, *inputs)`` with `params`,
            or an `Adapter`. It is not touched, now or later (law 5).
        backend: name of the guest's backend. None finds it from the model's class; for a
            function, from the environment variable ``GRADBRIDGE_BACKEND``.
        host: the autodiff system that differentiates. ``"auto"``: whose the arrays of each call are (NumPy's are
            autograd's); a name pins one, whose arrays NumPy's then become.
        params: a function's parameters, a pytree of arrays.
        dtype: the dtype to compute in. None follows the params of each call: float64 ones get values and
            gradients of that precision, whatever dtype the model was made in. ``"model"`` keeps the model's
            own, and a name such as ``"float32"`` fixes one.
        device: the device to compute on. None keeps the model's own.
        mode: ``"eval"``, or ``"train"`` for dropout masks and batch statistics.
        seed: of the bridge's own noise; the framework's random state is not used.
        noise: with ``mode="train"``: ``"frozen"`` (the same mask always), ``"per_params"`` (a new
            one whenever the params change) or ``"per_call"``.
        check_finite: refuse params with NaN or infinity, naming the first.
        reuse: how many evaluations to remember, so that the same params and inputs, compared byte
            for byte, cost one forward however often they are asked for. For models that draw no random numbers.
            Memory: inputs and residuals of so many calls.
        rows_per_chunk: compute long inputs in chunks of so many rows (their first axis), in bounded memory, for one
            more forward per gradient. For models of independent rows, in eval mode; the first long call makes sure.
        nondiff: inputs that are held constant, by position (1 is the first after the params) or by the model's name
            for them, e.g. ``(2, "mask")``: the gradient by what reaches the model through them is exactly zero.
        audit: ``"first"`` checks the model once, at its first differentiated call and at its first derivative
            of each kind, at the cost of a few evaluations: whether it computes with its params and inputs
            alone, and whether its derivatives agree. What fails is corrected, or refused with the reason.
            ``"off"`` checks nothing.
        outputs: shapes and dtypes of the outputs, for a model that does not know them before it has
            run: ``(shape, dtype)``, an array as an example, a tree of them, or a function of the inputs'
            specs that returns such a tree.
        registry: the plugins to choose from; by default all that are installed.
        **options: options of the backend.

    Returns:
        The differentiable function ``f(params, *inputs)``.

    Raises:
        UnknownModelError: no backend recognises the model.
        UnknownBackendError: there is no such backend; the nearest name is suggested.
        BackendUnavailableError: its framework is missing or broken; says how to install it.
        OptionError: an unknown option, for which the nearest name is suggested, or a value that it cannot take.
    """
    check_options(backend=backend, host=host, registry=registry)
    registry = registry if registry is not None else default_registry()
    if isinstance(model, Adapter):
        if options or backend is not None or dtype is not None or device is not None or params is not None:
            raise OptionError("an Adapter is complete: give its dtype, device and options where it is made")
        adapter, follows = model, False
    else:
        own = None if isinstance(dtype, str) and dtype == "model" else dtype
        guest = GuestOptions(params=params, dtype=own, device=device, mode=mode, extra=options)
        adapter, follows = adapter_of(model, backend, registry, guest), dtype is None
    if rows_per_chunk is not None:
        if mode == "train":
            raise OptionError(
                f"rows_per_chunk={rows_per_chunk} was asked for with mode='train', where rows share masks and batch "
                f"statistics; leave it out or use mode='eval'"
            )
        adapter = ChunkedAdapter(adapter, rows_per_chunk)
    return Bridge(
        adapter,
        host,
        mode=mode,
        seed=seed,
        noise=noise,
        check_finite=check_finite,
        reuse=reuse,
        nondiff=nondiff,
        outputs=outputs,
        audit=audit,
        follows=follows,
        registry=registry,
    )
