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
    assert str(able).startswith("<lambda>, host auto")


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


def test_each_strategy_for_a_jacobian_is_a_row_and_the_latest_is_shown():
    torch = pytest.importorskip("torch")
    f = gb.bridge(torch.nn.Linear(3, 1), dtype="float64")
    able = f.capabilities
    for strategy in ("per-example", "batched VJP", "batched JVP", "loop"):
        assert able[f"Jacobian, {strategy}"]
    assert "own, one forward" in able["forward mode (JVP)"].note
    assert able["latest Jacobian"].note == "none yet"
    f.jacobian(f.params, np.ones((64, 3)))
    assert f.capabilities["latest Jacobian"].note.startswith(("per-example, for 64", "JVPs, for 64"))
    f.jacobian(f.params, np.ones((5, 3)), strategy="loop")
    assert "one backward per output, for 5 outputs and 4 numbers" in f.capabilities["latest Jacobian"].note


def test_what_a_chunked_bridge_can_do_is_what_its_guest_can():
    torch = pytest.importorskip("torch")
    able = gb.bridge(torch.nn.Linear(3, 1), rows_per_chunk=8).capabilities
    assert able["Jacobian, per-example"]
    plain = gb.bridge(lambda p, x: x, params=np.ones(2), backend="numpy", rows_per_chunk=8).capabilities
    assert not plain["Jacobian, per-example"]
