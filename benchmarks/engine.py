"""Candidate selection in the real Seldonian Engine: its own PyTorch and TensorFlow classes against ours.

Both train the same native model from the same start with the same hyperparameters. The engine's
classes run as its tutorials use them, with its own objectives; ours as `supervised_spec` sets them up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

import gradbridge as gb
from benchmarks.figures import Figure, Report, count, ratio, seconds

BUDGET = 2.0


def run(report: Report) -> None:
    """Print a table: problem × framework."""
    try:
        from gradbridge_seldonian.demo import stories  # noqa: F401
    except gb.errors.BackendUnavailableError as error:
        report.say(f"the engine benchmark is left out: {error}")
        return
    title = "candidate selection in the Seldonian Engine, seconds per run: the engine's own classes, and ours"
    # Forwards a step: as many as the engine asks for, and as many as are made.
    headings = ("problem", "model", "steps", "engine's", "ours", "faster", "asked for", "made", "Δθ")
    with report.table(title, *headings) as table:
        for framework, natives in (("torch", _torch_models), ("tensorflow", _keras_models)):
            if gb.backends()[framework].available:
                for problem in ("fairness", "digits"):
                    table.row(*_row(framework, problem, natives))


def _row(framework: str, problem: str, natives: Callable[[str], Any]) -> list[str | Figure]:
    from gradbridge_seldonian import SeldonianModel

    theirs = _engine_model(framework, natives(problem))
    own = {"dtype": None}
    spec = _spec(problem, SeldonianModel(natives(problem), **own))
    iterations = _iterations(spec)
    ours, solution, forwards = min(
        (_select(_spec(problem, SeldonianModel(natives(problem), **own))) for _ in range(3)),
        key=lambda r: r[0],
    )
    # As the engine goes about it: every evaluation that it asks for is made.
    unhelped = SeldonianModel(natives(problem), reuse=0, **own)
    _, _, plain = _select(_engine_spec(problem, unhelped, natives))
    model = f"{framework}, {spec.model.bridge.layout.size}"
    cells = [problem, model, count(iterations, "steps")]
    counts = [Figure(n / iterations, "forwards a step") for n in (plain, forwards)]
    try:
        runs = (_select(_engine_spec(problem, theirs, natives)) for _ in range(2))
        engines, reached, _ = min(runs, key=lambda r: r[0])
    except Exception as error:  # the engine's class may not be able to do it at all
        return [*cells, f"raises {type(error).__name__}", seconds(ours), "–", *counts, "–"]
    difference = float(np.max(np.abs(solution - reached)))
    faster = ratio(engines / ours, at_least=BUDGET)
    return [*cells, seconds(engines), seconds(ours), faster, *counts, Figure(difference, "largest")]


def _select(spec: Any) -> tuple[float, np.ndarray, int]:
    """(seconds, solution, guest forwards) of one candidate selection."""
    from seldonian.seldonian_algorithm import SeldonianAlgorithm

    algorithm = SeldonianAlgorithm(spec)
    algorithm.set_initial_solution()
    with gb.trace() as t:
        algorithm.run_candidate_selection()
    forwards = t.counts["forward"]
    algorithm = SeldonianAlgorithm(spec)
    algorithm.set_initial_solution()
    start = time.perf_counter()
    solution = algorithm.run_candidate_selection()
    return time.perf_counter() - start, np.asarray(solution), forwards


def _spec(problem: str, model: Any) -> Any:
    """The demonstration's own specification of a problem."""
    from gradbridge_seldonian.demo import stories

    return getattr(stories, f"{problem}_spec")(model)


def _engine_spec(problem: str, model: Any, natives: Callable[[str], Any]) -> Any:
    """The same problem as the engine's tutorials set it up for a class of theirs."""
    from seldonian.models import objectives
    from seldonian.parse_tree.parse_tree import make_parse_trees_from_constraints
    from seldonian.spec import SupervisedSpec

    from gradbridge_seldonian import SeldonianModel

    ours = _spec(problem, SeldonianModel(natives(problem), dtype="model"))
    start = model.bridge.params if hasattr(model, "bridge") else model.get_model_params()
    return SupervisedSpec(
        dataset=ours.dataset,
        model=model,
        parse_trees=make_parse_trees_from_constraints(
            [tree.constraint_str for tree in ours.parse_trees],
            [tree.delta for tree in ours.parse_trees],
            regime="supervised_learning",
            sub_regime=ours.sub_regime,
            columns=list(ours.dataset.meta.sensitive_col_names),
        ),
        sub_regime=ours.sub_regime,
        frac_data_in_safety=ours.frac_data_in_safety,
        primary_objective=getattr(objectives, ours.primary_objective.__name__),
        use_builtin_primary_gradient_fn=False,
        initial_solution_fn=lambda *ignored: start.astype(np.float64),
        optimization_hyperparams=ours.optimization_hyperparams,
    )


def _iterations(spec: Any) -> int:
    settings = spec.optimization_hyperparams
    if not settings["use_batches"]:
        return int(settings["num_iters"])
    rows = round(spec.dataset.num_datapoints * (1 - spec.frac_data_in_safety))
    return int(settings["n_epochs"] * -(-rows // settings["batch_size"]))


def _engine_model(framework: str, native: Any) -> Any:
    if framework == "torch":
        from seldonian.models.pytorch_model import SupervisedPytorchBaseModel

        class Torch(SupervisedPytorchBaseModel):
            def create_model(self, **kwargs: Any) -> Any:
                return native

        return Torch("cpu")
    from seldonian.models.tensorflow_model import SupervisedTensorFlowBaseModel

    class Keras(SupervisedTensorFlowBaseModel):
        def create_model(self, **kwargs: Any) -> Any:
            return native

        def backward_pass(self, v: Any) -> Any:
            # The engine hands autograd's float64 to a float32 graph, which TensorFlow refuses.
            return super().backward_pass(np.asarray(v, np.float32))

    return Keras()


def _torch_models(problem: str) -> Any:
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    if problem == "fairness":
        return nn.Sequential(nn.Linear(9, 1), nn.Sigmoid(), nn.Flatten(0)).eval()

    class ChannelsFirst(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.permute(0, 3, 1, 2)

    return nn.Sequential(
        ChannelsFirst(), nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1),
    ).eval()  # fmt: skip


def _keras_models(problem: str) -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    if problem == "fairness":
        return keras.Sequential(
            [keras.Input((9,)), layers.Dense(1, activation="sigmoid"), layers.Reshape(())]
        )
    convolution = {"padding": "same", "activation": "relu"}
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)), layers.Conv2D(8, 3, **convolution), layers.MaxPool2D(),
            layers.Conv2D(16, 3, **convolution), layers.MaxPool2D(), layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )  # fmt: skip
