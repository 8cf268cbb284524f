"""``gradbridge check`` of hosts and ``gradbridge matrix``: what is printed, drawn and handed on."""

import importlib.metadata
import json
import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from click.testing import CliRunner

from gradbridge.cli import cli
from gradbridge.errors import BackendUnavailableError, OptionError
from gradbridge.registry import Registry
from gradbridge.testing import check_command, matrix_command
from gradbridge.testing.drawing import _lines, drawing
from gradbridge.testing.hosts import find_host, reference, run_hosts
from gradbridge.testing.hosts.faulty import HOST_FAULTS
from gradbridge.testing.matrix import Matrix, mark, matrix_of

SOME = (
    "value_is_right",
    "second_order",
    "host_gradients",
    "host_second_order",
    "host_third_order",
    "host_vmap",
)
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def small():
    """The backends that are there wherever gradbridge is."""
    names = ("autograd", "numpy")
    points = [importlib.metadata.EntryPoint(n, f"gradbridge_{n}", "gradbridge") for n in names]
    return Registry(points)


@pytest.fixture(scope="module")
def matrix(small):
    return matrix_of(small, SOME)


def test_the_matrix_has_a_cell_for_each_host_and_guest(matrix):
    assert matrix.passed
    cells = {(cell.host, cell.guest): cell for cell in matrix.cells()}
    assert set(cells) == {("autograd", "autograd"), ("autograd", "numpy")}
    cell = cells["autograd", "numpy"]
    assert (cell.outcome, cell.order, cell.abilities["vmap"]) == ("passed", 3, "skipped")
    assert cell.reasons["vmap"] == "autograd: autograd maps nothing"
    assert mark(cell).startswith("[green]✓[/] 3 ")


def test_a_reason_is_told_once_for_a_whole_row_of_cells(matrix):
    assert "– vmap, autograd with every guest: autograd: autograd maps nothing" in matrix.reasons()


def test_the_tables_fit_into_eighty_columns(small, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert matrix_command(small, SOME) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    (row,) = [line for line in lines if line.startswith("│ autograd ")]
    assert row.count("✓ 3") == 2
    assert any(line.startswith("│ 7. never silently wrong") for line in lines)


def test_json_has_all_of_it_and_nothing_else_is_printed(small, capsys):
    assert matrix_command(small, SOME, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["hosts"]["autograd"]["numpy"]["order"] == 3
    assert found["hosts"]["autograd"]["numpy"]["abilities"]["vmap"] == "skipped"
    assert found["guests"]["autograd"]["laws"]["7"] == "passed"
    assert found["failures"] == []
    assert set(found["versions"]) == {"autograd", "numpy"}


def texts_of(svg):
    root = ET.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    return root, [element.text for element in root.iter(f"{SVG}text")]


def test_the_picture_has_every_host_guest_and_law_in_words(matrix, tmp_path, small):
    path = tmp_path / "matrix.svg"
    assert matrix_command(small, SOME, save=path) == 0
    root, texts = texts_of(path.read_text(encoding="utf-8"))
    assert texts.count("orders 1 to 3") == 2
    assert {"host × guest", "guest × law", "autograd", "numpy", "7. never silently wrong"} <= set(texts)
    # Readable at half size, and on any page: no letter is small, and nothing lies outside of the sheet.
    sizes = [int(element.get("font-size")) for element in root.iter(f"{SVG}text")]
    assert min(sizes) >= 18
    width, height = int(root.get("width")), int(root.get("height"))
    for element in root.iter(f"{SVG}text"):
        assert 0 < float(element.get("x")) < width
        assert 0 < float(element.get("y")) < height


def test_what_is_broken_has_a_mark_of_another_shape_and_its_numbers():
    fault = HOST_FAULTS["host_gradients"][0]
    host = fault.under_test()
    report = run_hosts(host, [reference(host.registry)], ["host_gradients", "host_value"])
    broken = Matrix({}, {"paper": report}, (), {"paper": None})
    assert not broken.passed
    (cell,) = broken.cells()
    assert mark(cell).startswith("[bold red]✗[/] –")
    assert any("host_gradients[reference-mlp]" in note for note in broken.failures())
    root, texts = texts_of(drawing(broken))
    assert "no gradient" in texts
    squares = [r for r in root.iter(f"{SVG}rect") if r.get("width") == "20" and r.get("rx") is None]
    assert len(squares) == 2  # the cell's, and that of the legend


def test_what_is_broken_beside_what_is_shown_is_said_in_words():
    fault = HOST_FAULTS["host_trees"][0]
    report = run_hosts(
        fault.under_test(), [reference(find_host("paper").registry)], ["host_named", "host_trees"]
    )
    (cell,) = Matrix({}, {"paper": report}, (), {}).cells()
    shown = replace(cell, order=1, abilities=cell.abilities | {"vmap": "passed"})
    assert _lines(shown)[0] == ("a law is broken", "failed")
    assert _lines(replace(shown, outcome="passed"))[0] == ("order 1", "passed")


def test_names_are_written_as_they_are():
    host = find_host("paper")
    report = run_hosts(host, [reference(host.registry)], ["host_value"])
    odd = Matrix({}, {"<a & b>": report}, (), {})
    assert "<a & b>" in texts_of(drawing(odd))[1]


@pytest.mark.parametrize("path", ["matrix.png", "no/such/folder/matrix.svg"])
def test_a_file_that_cannot_be_drawn_is_refused_before_anything_is_checked(path, small):
    with pytest.raises(OptionError, match=re.escape(path)):
        matrix_command(small, save=path)


def test_check_runs_the_kit_for_hosts_after_that_for_guests(small, capsys):
    assert check_command("autograd", small, ["value_is_right", "host_value"], ["numpy"]) == 0
    text = capsys.readouterr().out
    assert text.index("gradbridge conformance of autograd") < text.index("autograd as a host of gradbridge")
    assert re.search(r"┃ reference +┃ numpy +┃", text)
    assert "autograd as a host: 12 passed, 0 failed, 0 skipped" in text


def test_check_of_a_guest_alone_has_no_hosts_in_it(small, capsys):
    assert check_command("numpy", small, ["value_is_right"]) == 0
    assert "as a host" not in capsys.readouterr().out


def test_a_broken_host_is_the_exit_code(small, monkeypatch, capsys):
    faulty = HOST_FAULTS["host_value"][1].under_test(small)
    monkeypatch.setattr("gradbridge.testing.commands.find_host", lambda name, registry: faulty)
    assert check_command("autograd", small, ["host_value"]) == 1
    assert "✗ host_value[reference-mlp], law 1" in capsys.readouterr().out


def test_a_host_without_operations_says_where_they_belong(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradbridge_autograd.host_conformance", None)
    with pytest.raises(
        BackendUnavailableError, match="class UnderTest in the module gradbridge_autograd.host_conformance"
    ):
        find_host("autograd", small)


def test_a_guest_is_no_host(small):
    with pytest.raises(BackendUnavailableError, match="backend 'numpy' is not a host"):
        find_host("numpy", small)


def test_the_command_line_takes_guests_and_files():
    result = CliRunner().invoke(
        cli, ["check", "autograd", "--only", "host_gradients", "--guest", "numpy", "--guest", "autograd"]
    )
    assert result.exit_code == 0, result.output
    assert "autograd as a host: 18 passed, 0 failed, 0 skipped" in result.output
    result = CliRunner().invoke(cli, ["matrix", "--save", "matrix.pdf"])
    assert result.exit_code == 1
    assert "must be called ….svg" in result.output
