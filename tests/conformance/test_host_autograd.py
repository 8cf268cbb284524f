"""HIPS autograd as a host of every guest: each cell against closed forms."""

import pytest
from host_cells import cases, expect_passes

#: What it has not, for the reasons in its `host_conformance`.
LEFT_OUT = ("vmap", "compiled", "compiled second order", "compiled forward mode")


@pytest.mark.parametrize(("guest", "check"), cases())
def test_cell(guest, check):
    expect_passes("autograd", guest, check, LEFT_OUT)
