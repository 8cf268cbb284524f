"""JAX as a host of every guest: each cell against closed forms."""

import pytest
from host_cells import cases, expect_passes

#: What it has not, for the reasons in its `host_conformance`.
LEFT_OUT = ("host_changed_in_place",)


@pytest.mark.parametrize(("guest", "check"), cases())
def test_cell(guest, check):
    expect_passes("jax", guest, check, LEFT_OUT)
