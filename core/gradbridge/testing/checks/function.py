"""Laws 8 and 9: one forward per gradient, and the same arguments give the same outputs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np

from gradbridge.errors import HigherOrderError, Unsupported
from gradbridge.execution import batched
from gradbridge.layout import Array
from gradbridge.protocol import Adapter
from gradbridge.testing.backend import Native, NotOfferedError
from gradbridge.testing.checks.catalogue import check
from gradbridge.testing.checks.pure import copied
from gradbridge.testing.compare import expect_close, expect_gradients, expect_outputs, expect_same
from gradbridge.testing.points import ScenarioPoint, forward
from gradbridge.testing.scenarios import BATCHNORM, DROPOUT_RATE
from gradbridge.testing.subject import Flight, Subject
from gradbridge.tracing import trace


@check(8, ("mlp", "energy", "outputs"))
def one_forward(subject: Subject) -> None:
    """A value and the gradients of all arguments cost one update, one forward and one backward."""
    point = subject.point(80)
    for observed in (True, False):
        adapter = subject.fresh()
        # Where somebody observes, the steps are made one by one, and else together.
        update = "update_flat" if subject.first_input else "update"
        steps = (update, "forward", "backward") if observed else ("evaluate", "backward")
        calls = {step: counted(adapter, step) for step in steps}
        with trace(subject.under_test.registry) if observed else nullcontext() as t:
            subject.start(point, adapter=adapter).pull()
        if t is not None:
            assert set(t.counts.values()) == {1}, f"expected every step once, observed {t.counts}"
        for step, count in calls.items():
            assert count() == 1, f"expected one {step} of the adapter, also by itself, counted {count()}"


@check(9)
def same_again(subject: Subject) -> None:
    """The same params and inputs give the same outputs to the last bit, with residuals kept or not."""
    point = subject.point(81)
    first = subject.start(point)
    for when, again in (
        ("again", subject.start(point)),
        ("with another seed for noise that it has not", subject.start(point, noise=7)),
        ("with no residuals kept", subject.start(point, wrt=())),
    ):
        for got, expected in zip(again.outputs, first.outputs, strict=True):
            if when.startswith("with no"):  # a framework may compile the two differently
                expect_close(got, expected, f"output {when}", subject.tolerance)
            else:
                expect_same(got, expected, f"output {when}")


@check(9)
def nothing_kept(subject: Subject) -> None:
    """A call that nobody differentiates keeps no residuals."""
    point, adapter = subject.point(82), subject.adapter()
    _, residuals = forward(adapter, point)
    assert residuals is None, f"expected residuals None for wrt=(), got a {type(residuals).__name__}"


@check(9, ("mlp", "energy"))
def surroundings_do_not_matter(subject: Subject) -> None:
    """Results are the same in any surroundings that the framework has: other seeds, dtypes and modes."""
    point, expected = subject.point(83), subject.gradients_at(subject.point(83))
    tried = 0
    for name, context in subject.under_test.surroundings():
        tried += 1
        outside = subject.start(point)
        with context:
            inside = subject.start(point)
            pulled = outside.pull()
            expect_gradients(inside.pull(), expected, subject.tolerance, f"all done {name}")
            made_inside = subject.adapt(subject.build(subject.initial()), subject.precision)
        expect_gradients(pulled, expected, subject.tolerance, f"pulled back {name}")
        expect_gradients(inside.pull(), expected, subject.tolerance, f"made {name}, pulled back outside")
        expect_outputs(inside.outputs, subject.outputs_at(point), subject.tolerance, f"computed {name}")
        later = subject.start(point, adapter=made_inside)
        expect_gradients(later.pull(), expected, subject.tolerance, f"of an adapter made {name}")
    if not tried:
        raise NotOfferedError(f"{subject.under_test.name}: surroundings() are not given")


@check(9, ("dropout",), "train")
def noise_is_the_calls(subject: Subject) -> None:
    """Noise comes from the call's seed alone: the same mask for the same seed, another one for another."""
    point = subject.point(84)
    one, again, two = (subject.start(point, noise=seed).outputs[0] for seed in (1, 1, 2))
    expect_same(again, one, "output with the same noise")
    other = subject.start(point, adapter=subject.fresh(), noise=1).outputs[0]
    expect_same(other, one, "output of a second adapter with the same noise")
    assert one.tobytes() != two.tobytes(), "two seeds gave the same mask"
    kept = point.inputs[0] / (1 - DROPOUT_RATE)
    expect_close(one, np.where(one == 0, 0.0, kept), "kept elements, which are x / (1 - rate)", 1e-6)
    assert 0 < np.mean(one == 0) < 1, "expected some elements to be dropped and some to be kept"


@check(9, ("dropout",), "train")
def backward_uses_its_mask(subject: Subject) -> None:
    """A backward, and every replay of the call, uses the mask of its forward, whatever came later."""
    point = subject.point(85)
    flights = [subject.start(point, noise=seed) for seed in (1, 2)]
    for flight in flights:
        expected = _masked(flight)
        expect_close(flight.pull()[0], expected, "gradient through the mask of its forward", 1e-6)
        try:
            gradient = flight.differentiated()
        except HigherOrderError:
            continue
        (again,) = gradient.evaluate([*point.arguments, *point.cotangents], ()).outputs
        expect_close(again, expected, "gradient by the pullback's adapter", 1e-6)


@check(9, ("dropout",), "train")
def noise_in_threads(subject: Subject) -> None:
    """Eight threads that draw at once get the masks of their own seeds."""
    point, adapter = subject.point(86), subject.adapter()
    alone = [subject.start(point, noise=seed).outputs[0] for seed in range(8)]
    outputs: dict[tuple[int, int], Any] = {}

    def work(seed: int) -> None:
        for turn in range(4):
            outputs[seed, turn] = subject.start(point, adapter=adapter, noise=seed).outputs[0]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outputs) == 32, "a thread failed"
    for (seed, _), output in outputs.items():
        expect_same(output, alone[seed], "output of one thread among eight")


@check(9, ("batchnorm",), "train")
def train_mode_normalizes(subject: Subject) -> None:
    """In train mode the batch's own statistics normalize, and the gradient goes through them."""
    point = subject.point(87, rows=6)
    flight = subject.start(point)
    expect_outputs(flight.outputs, subject.outputs_at(point), subject.tolerance, "in train mode")
    expect_gradients(flight.pull(), subject.gradients_at(point), subject.tolerance, "in train mode")


@check(9, ("batchnorm",), "train")
def statistics_move_once(subject: Subject) -> None:
    """BatchNorm statistics move once per forward, on no backward, JVP or replay, and never in the user's model."""
    point = subject.point(88, rows=6)
    natives = [subject.build(subject.initial()) for _ in range(3)]
    once, replayed, twice = (subject.adapt(native, subject.precision) for native in natives)
    subject.start(point, adapter=once)
    flight = subject.start(point, adapter=replayed)
    flight.pull()
    flight.pull()
    with suppress(HigherOrderError):
        flight.differentiated().evaluate([*point.arguments, *point.cotangents], flight.evaluation.wrt)
    with suppress(Unsupported):
        batched.push(flight.evaluation, (subject.first_input,), [point.inputs[0]])
    for _ in range(2):
        subject.start(point, adapter=twice)
    after_one = in_eval_mode(subject, once, point)
    new = _closed_form_in_eval_mode(subject, point)
    assert not np.allclose(after_one, new, atol=1e-6), "model(weights) does not show the moved statistics"
    expect_close(
        in_eval_mode(subject, replayed, point), after_one, "after backwards and a replay", subject.tolerance
    )
    after_two = in_eval_mode(subject, twice, point)
    assert not np.allclose(after_two, after_one, atol=1e-6), "a second forward did not move the statistics"
    user = subject.adapt(natives[2], subject.precision, "eval")
    expect_outputs(
        subject.start(point, adapter=user).outputs, [new], subject.tolerance, "of the user's model"
    )


@check(5, ("batchnorm",), "train")
def copies_keep_their_state(subject: Subject) -> None:
    """A deep copy goes on from the statistics of its original, and from then on each moves its own."""
    first, second = subject.point(180, rows=6), subject.point(181, rows=6)
    original = subject.fresh()
    subject.start(first, adapter=original)
    before = in_eval_mode(subject, original, first)
    twin = copied(original, subject)
    expect_close(in_eval_mode(subject, twin, first), before, "model(weights) of a copy", subject.tolerance)
    flight = subject.start(second, adapter=twin)
    flight.pull()
    moved = in_eval_mode(subject, twin, first)
    assert not np.allclose(moved, before, atol=1e-6), "a copy's forward did not move its statistics"
    for what, adapter, expected in (
        ("the original, after its copy was called", original, before),
        ("the copy", twin, moved),
    ):
        expect_close(in_eval_mode(subject, adapter, first), expected, f"of {what}", subject.tolerance)
    subject.start(second, adapter=original)
    after = in_eval_mode(subject, original, first)
    expect_close(after, moved, "of the original, after the same call", subject.tolerance)
    subject.start(first, adapter=original)
    got = in_eval_mode(subject, twin, first)
    expect_close(got, moved, "of the copy, after its original was called", subject.tolerance)


def _masked(flight: Flight) -> Array:
    """v ∂y/∂x for dropout, read off its outputs."""
    masked: Array = flight.point.cotangents[0] * flight.outputs[0] / flight.point.inputs[0]
    return masked


def in_eval_mode(subject: Subject, adapter: Adapter, point: ScenarioPoint) -> Array:
    """What model(weights) computes when it is evaluated with its stored statistics."""
    evaluated = subject.adapt(
        Native(adapter.model(adapter.layout.cut(point.params))), subject.precision, "eval"
    )
    return subject.start(point, adapter=evaluated).outputs[0]


def _closed_form_in_eval_mode(subject: Subject, point: ScenarioPoint) -> Array:
    return np.asarray(BATCHNORM.value(subject.by_name(point.params), point.inputs))


def counted(adapter: Adapter, step: str) -> Callable[[], int]:
    """Count the calls of a step on one adapter, those that it makes itself included."""
    original, calls = getattr(adapter, step), []

    def counting(*args: Any) -> Any:
        calls.append(1)
        return original(*args)

    setattr(adapter, step, counting)
    return lambda: len(calls)
