"""PyTorch as a host of every guest: each cell against closed forms."""

import pytest
from host_cells import cases, expect_passes

#: What it has not: torch would make forward mode of a custom operation zero within torch.compile, so it is refused.
LEFT_OUT = ("compiled forward mode",)


@pytest.mark.parametrize(("guest", "check"), cases())
def test_cell(guest, check):
    expect_passes("torch", guest, check, LEFT_OUT)
