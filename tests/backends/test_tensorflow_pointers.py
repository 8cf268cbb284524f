"""Arrays cross to TensorFlow as they are: a copy only where the caller could change them, and one only."""

import numpy as np
import pytest

from gradbridge.call_spec import CallSpec
from gradbridge.errors import InputError
from gradbridge.layout import ParameterLayout
from gradbridge.protocol import GuestOptions

tf = pytest.importorskip("tensorflow")

from gradbridge_tensorflow import tensors  # noqa: E402
from gradbridge_tensorflow.framework import TensorFlow  # noqa: E402
from gradbridge_tensorflow.guest import adapt  # noqa: E402

FRAMEWORK = TensorFlow("net")
LARGE = np.random.default_rng(0).normal(size=(300, 300))


def address(array):
    return np.asarray(memoryview(array)).ctypes.data


class Foreign:
    """An array of another library."""

    def __init__(self, array):
        self.array, self.dtype, self.shape = array, array.dtype, array.shape

    def __dlpack__(self, **how):
        return self.array.__dlpack__(**how)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_a_tensor_is_taken_as_it_is():
    tensor = tf.constant(LARGE)
    for crossed in (FRAMEWORK.asarray(tensor, None), FRAMEWORK.asarray(tensor, tf.float64)):
        assert address(crossed) == address(tensor)
    assert FRAMEWORK.asarray(tensor, tf.float32).dtype == tf.float32
    assert FRAMEWORK.asarray(tf.constant([1, 2]), tf.float32).dtype == tf.int32
    assert FRAMEWORK.asarray(tf.constant([1j]), tf.float32).dtype == tf.complex64


@pytest.mark.parametrize("wrap", [np.asarray, Foreign])
def test_what_may_change_is_copied_once(wrap, monkeypatch):
    copies, aligned = [], tensors.aligned_copy
    monkeypatch.setattr(tensors, "aligned_copy", lambda *how: copies.append(aligned(*how)) or copies[-1])
    mine = LARGE.copy()
    crossed = FRAMEWORK.asarray(wrap(mine), None)
    assert address(crossed) == copies[0].ctypes.data != mine.ctypes.data  # TensorFlow made no other
    mine[:] = 0
    np.testing.assert_array_equal(crossed, LARGE)
    assert FRAMEWORK.asarray(wrap(LARGE), tf.float32).dtype == tf.float32
    assert len(copies) == 2


def test_what_is_lent_is_not_copied():
    mine = tensors.aligned(LARGE.size, LARGE.dtype).reshape(LARGE.shape)
    mine[...] = LARGE
    assert address(FRAMEWORK.lend(mine, tf.float64)) == mine.ctypes.data
    assert address(FRAMEWORK.lend(Foreign(mine), tf.float64)) == mine.ctypes.data
    number = FRAMEWORK.lend(np.array(3.0), tf.float64)
    assert number.shape == ()


def test_torchs_bfloat16_crosses_without_numpy():
    torch = pytest.importorskip("torch")
    mine = torch.arange(4, dtype=torch.bfloat16)
    crossed = FRAMEWORK.asarray(mine, None)
    assert crossed.dtype == tf.bfloat16
    mine[:] = 0
    np.testing.assert_array_equal(FRAMEWORK.asnumpy(crossed), np.arange(4.0))


def test_a_flat_vector_is_copied_once_for_all_weights(monkeypatch):
    copies, aligned = [], tensors.aligned
    monkeypatch.setattr(tensors, "aligned", lambda *how: copies.append(aligned(*how)) or copies[-1])
    layout = ParameterLayout(("a", "b"), ((300, 299), (300,)), ("float64", "float64"))
    vector = LARGE.reshape(-1)
    cut = FRAMEWORK.border(layout, [tf.float64] * 2).cut(vector)
    (own,) = copies
    start = own.ctypes.data
    assert all(start <= address(t) < start + own.nbytes for t in cut)
    np.testing.assert_array_equal(cut[1], vector[-300:])


def test_results_are_views_of_the_tensors_memory():
    tensor = tf.constant(LARGE)
    assert FRAMEWORK.asnumpy(tensor).ctypes.data == address(tensor)
    assert FRAMEWORK.asnumpy(tf.constant([1.5], tf.bfloat16)).dtype == np.float32
    assert FRAMEWORK.asnumpy(tf.zeros((0, 3))).shape == (0, 3)


def test_a_call_keeps_tensors_and_gives_tensors():
    adapter = adapt(lambda p, x: (x, x @ p), GuestOptions(np.eye(300), None, None, "eval"))
    x, weights = tf.constant(LARGE), [tf.constant(np.eye(300))]
    loaded = adapter.update(weights)
    assert address(loaded[0]) == address(weights[0])
    (same, product), residuals = adapter.forward(loaded, [x], CallSpec.of_arrays(1), (0, 1))
    assert address(same) == address(x)
    cotangent = tf.ones_like(product)
    by_weights, by_x = adapter.backward(residuals, [tf.zeros_like(same), cotangent], (0, 1))
    assert isinstance(product, tf.Tensor)
    assert isinstance(by_weights, tf.Tensor)
    np.testing.assert_allclose(by_weights, LARGE.T @ np.ones((300, 300)))
    np.testing.assert_allclose(by_x, np.ones((300, 300)))


def test_a_dtype_that_tensorflow_lacks_is_named():
    with pytest.raises(InputError, match="no tensors of dtype"):
        FRAMEWORK.asarray(np.array(["2020-01-01"], "M8[D]"), None)
