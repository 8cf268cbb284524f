import numpy as np
import pytest

import gradbridge as gb


def test_a_written_gradient_has_first_order_and_says_why_no_more():
    f = gb.bridge(lambda p, x: x, params=np.ones(2), backend="numpy")
    able = f.capabilities
    assert able["gradient wrt params"]
    assert not able["derivatives of derivatives"]
    assert "written-down gradient" in able["derivatives of derivatives"].note
    assert not able["forward mode (JVP)"]
    assert "no   an index or a mask" in str(able)
    assert str(able).startswith("<lambda>, differentiated by autograd")


def test_a_torch_model_has_every_order():
    torch = pytest.importorskip("torch")
    able = gb.bridge(torch.nn.Linear(2, 1), reuse=2).capabilities
    assert able["derivatives of derivatives"]
    assert able["forward mode (JVP)"]
    assert "on: f.memory counts" in able["reuse of evaluations"].note
    train = gb.bridge(torch.nn.Linear(2, 1), mode="train").capabilities
    assert not train["reuse of evaluations"]


def test_a_model_without_parameters_says_so():
    f = gb.primitive(lambda x: x).bridge
    assert f.capabilities["gradient wrt params"].note == "the model has no parameters"
