import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gradbridge as gb
from gradbridge.errors import ParamsShapeError
from gradbridge.saving import ParamsFileError


def bridge(**tree):
    return gb.bridge(lambda p, x: x, params=tree, backend="numpy")


@pytest.fixture
def saved(tmp_path):
    f = bridge(a=np.zeros(2), b=np.zeros((2, 2)))
    params = np.array([1.0, np.nan, 3, -0.0, 1e-300, np.pi])
    f.save(tmp_path / "p.safetensors", params)
    return tmp_path / "p.safetensors", params


def test_what_is_saved_comes_back_bit_for_bit(saved):
    path, params = saved
    again = bridge(a=np.ones(2), b=np.ones((2, 2))).load(path)
    assert again.tobytes() == params.tobytes()


def test_any_reader_of_safetensors_can_open_it(saved):
    path, params = saved
    assert np.array_equal(load_file(path)["b"], params[2:].reshape(2, 2))


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"a": np.zeros(2), "c": np.zeros((2, 2))}, "parameter 1 is 'b' in the file and 'c' in the model"),
        (
            {"a": np.zeros(3), "b": np.zeros((2, 2))},
            r"parameter 0, 'a', has shape \(2,\) in the file and \(3,\)",
        ),
        ({"a": np.zeros(2)}, "2 parameters, the model has 1; the first that only the file has is 'b'"),
        ({"a": np.zeros(2), "b": np.zeros((2, 2)), "c": 0.0}, "the first that only the model has is 'c'"),
    ],
)
def test_a_file_of_another_model_is_refused_with_the_first_difference(saved, tree, said):
    with pytest.raises(ParamsFileError, match=said):
        bridge(**tree).load(saved[0])


def test_names_may_be_left_out_of_the_comparison(saved):
    path, params = saved
    assert bridge(x=np.zeros(2), y=np.zeros((2, 2))).load(path, names=False).tobytes() == params.tobytes()


def test_other_files_are_refused(tmp_path):
    f = bridge(a=np.zeros(2))
    (tmp_path / "text").write_text("hello, this is not a tensor file at all")
    with pytest.raises(ParamsFileError, match="not a safetensors file"):
        f.load(tmp_path / "text")
    save_file({"a": np.zeros(2)}, tmp_path / "foreign")
    with pytest.raises(ParamsFileError, match="of something else"):
        f.load(tmp_path / "foreign")


def test_a_vector_that_does_not_fit_is_not_written(tmp_path):
    with pytest.raises(ParamsShapeError):
        bridge(a=np.zeros(2)).save(tmp_path / "p", np.zeros(3))
    assert not (tmp_path / "p").exists()


def test_a_vector_trained_on_one_framework_loads_on_another(tmp_path):
    pytest.importorskip("torch")
    first = gb.bridge(gb.build("mlp", [2, 3, 1], backend="numpy"))
    first.save(tmp_path / "p", first.params)
    other = gb.bridge(gb.build("mlp", [2, 3, 1], backend="torch", seed=1), dtype="float64")
    X = np.ones((4, 2))
    assert np.allclose(other(other.load(tmp_path / "p"), X), first(first.params, X), rtol=1e-12)
