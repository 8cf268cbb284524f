"""The closed forms agree with themselves: gradients with values, by the complex step."""

import numpy as np
import pytest

from gradbridge.testing import SCENARIOS, Subject, derivatives, waves
from gradbridge.testing.reference import Reference
from gradbridge.testing.scenarios import BATCHNORM_TRAIN, WAVE

ANALYTIC = [*(s for s in SCENARIOS.values() if s is not WAVE), BATCHNORM_TRAIN]


@pytest.mark.parametrize("scenario", ANALYTIC, ids=lambda s: s.name)
@pytest.mark.parametrize("rows", [1, 4])
def test_closed_form_gradients_are_those_of_the_values(scenario, rows):
    subject = Subject(Reference(), scenario)
    point = subject.point(1, rows)
    wrt = subject.differentiable(point.inputs)
    expected = derivatives.pullback(subject.value_function(), point.arguments, point.cotangents, wrt)
    for argument, gradient in zip(wrt, expected):
        np.testing.assert_allclose(subject.gradients_at(point)[argument], gradient, rtol=1e-12, atol=1e-12)


def test_complex_gradients_are_those_of_the_values_in_real_and_imaginary_parts():
    subject = Subject(Reference(), WAVE)
    point = subject.point(1)
    (x, z), (c, u) = point.inputs, point.cotangents
    parts = [subject.by_name(point.params)["scale"], x, z.real, z.imag]
    real, imaginary, square = waves.value(parts)
    np.testing.assert_allclose(real + 1j * imaginary, subject.outputs_at(point)[0], rtol=1e-14)
    np.testing.assert_allclose(square, np.abs(z) ** 2, rtol=1e-14)
    expected = derivatives.pullback(waves.value, parts, [c.real, -c.imag, u], range(4))
    gradients = subject.gradients_at(point)
    np.testing.assert_allclose(gradients[1], expected[1], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gradients[2], expected[2] - 1j * expected[3], rtol=1e-12, atol=1e-12)


def test_the_complex_step_is_exact_on_a_function_that_everyone_can_differentiate():
    x = np.array([0.5, -2.0])
    (gradient,) = derivatives.pullback(lambda a: [np.exp(a[0])], [x], [np.ones(2)], (0,))
    np.testing.assert_allclose(gradient, np.exp(x), rtol=1e-15)
    (moved,) = derivatives.pushforward(lambda a: [a[0] ** 3], [x], [np.array([1.0, 10.0])])
    np.testing.assert_allclose(moved, 3 * x**2 * [1.0, 10.0], rtol=1e-15)


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=lambda s: s.name)
def test_scenarios_are_small_and_drawn_the_same_way_each_time(scenario):
    subject = Subject(Reference(), scenario)
    assert scenario.size <= 70
    one, again = subject.point(5), subject.point(5)
    assert one.params.tobytes() == again.params.tobytes()
    assert [np.asarray(x).tobytes() for x in one.inputs] == [np.asarray(x).tobytes() for x in again.inputs]
    assert len(subject.point(5, rows=0).inputs[0]) == 0


def test_params_that_no_float32_holds_are_drawn():
    params = Subject(Reference(), SCENARIOS["mlp"]).point().params
    assert np.all(params != params.astype(np.float32))


def test_models_are_built_of_arrays_that_every_framework_holds_exactly():
    for array in Subject(Reference(), SCENARIOS["mlp"]).initial().values():
        assert np.array_equal(array, array.astype(np.float16))
