"""Files of parameters: whatever is wrong with one is said with its name, and nothing is lost by writing one."""

import errno
import json
import os
import pathlib
import stat
import struct
import tempfile

import numpy as np
import pytest

import gradbridge as gb
from gradbridge.errors import InputError, ParamsDtypeError
from gradbridge.saving import ParamsFileError


@pytest.fixture
def nobody():
    """A folder of a user who is not root, who may do anything; the test runs as that user."""
    with tempfile.TemporaryDirectory() as folder:
        is_root = os.geteuid() == 0
        if is_root:
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
        yield pathlib.Path(folder)
        if is_root:
            os.seteuid(0)


@pytest.fixture
def f():
    return gb.bridge(lambda p, x: x, params={"a": np.zeros(2), "b": np.zeros((2, 3))}, backend="numpy")


@pytest.fixture
def path(f, tmp_path):
    f.save(tmp_path / "p.st", np.arange(8.0))
    return tmp_path / "p.st"


def rewrite(path, change):
    """Rewrite the header of a safetensors file as `change` leaves it."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    layout = json.loads(header["__metadata__"]["layout"])
    header["__metadata__"]["layout"] = layout
    change(header, layout)
    if isinstance(header["__metadata__"].get("layout"), dict):
        header["__metadata__"]["layout"] = json.dumps(layout)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


DESCRIPTIONS = {
    "no layout": (lambda h, d: h["__metadata__"].pop("layout"), "is not valid JSON"),
    "no JSON": (lambda h, d: h["__metadata__"].update(layout="{'names'"), "is not valid JSON"),
    "JSON too deep": (lambda h, d: h["__metadata__"].update(layout="[" * 100_000), "is not valid JSON"),
    "a list": (lambda h, d: h["__metadata__"].update(layout="[1, 2]"), "no list of names"),
    "null": (lambda h, d: h["__metadata__"].update(layout="null"), "no list of names"),
    "no names": (lambda h, d: d.pop("names"), "no list of names"),
    "a number for names": (lambda h, d: d.update(names=3), "no list of names"),
    "numbers in names": (lambda h, d: d.update(names=[1, 2]), "no list of names"),
    "no shapes": (lambda h, d: d.pop("shapes"), "no shape for each name"),
    "too few shapes": (lambda h, d: d.update(shapes=[[2]]), "no shape for each name"),
    "text in shapes": (lambda h, d: d.update(shapes=["2", [2, 3]]), "no shape for each name"),
    "a negative axis": (lambda h, d: d.update(shapes=[[-2], [2, 3]]), "no shape for each name"),
    "another name": (lambda h, d: d.update(names=["a", "c"]), "not those that its description names"),
    "a name twice": (lambda h, d: d.update(names=["a", "a"]), "not those that its description names"),
    "another shape": (
        lambda h, d: h["b"].update(shape=[3, 2]),
        r"expected 'b' of shape \(2, 3\) in F64, got \(3, 2\)",
    ),
    "integers": (lambda h, d: h["b"].update(dtype="I64"), "in F64, got .* in I64"),
    "complex numbers": (lambda h, d: h["b"].update(dtype="C64"), "in C64|no safetensors file"),
}


@pytest.mark.parametrize("damage", DESCRIPTIONS)
@pytest.mark.parametrize("names", [True, False])
def test_a_damaged_description_is_refused_with_the_name_of_the_file(f, path, damage, names):
    change, said = DESCRIPTIONS[damage]
    rewrite(path, change)
    with pytest.raises(ParamsFileError, match=rf"p\.st.*({said})"):
        f.load(path, names=names)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        b"\xff" * 8 + b"{}",
        struct.pack("<Q", 1 << 40),
        struct.pack("<Q", 2) + b"[]",
        b"\x80\x04\x95",
        b"hello, world, this is text",
    ],
)
def test_what_is_no_safetensors_file_is_refused_with_the_name_of_the_file(f, path, content):
    path.write_bytes(content)
    with pytest.raises(ParamsFileError, match=r"p\.st"):
        f.load(path)


@pytest.mark.parametrize("cut", [1, 8, 60, 100])
def test_a_truncated_file_is_refused(f, path, cut):
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ParamsFileError, match=r"p\.st is not a safetensors file"):
        f.load(path)


def test_what_is_no_file_is_refused_and_what_is_not_there_is_not_found(f, tmp_path):
    os.mkfifo(tmp_path / "pipe.st")  # opening it would wait for whoever writes
    for name in ("", "pipe.st", "/dev/null"):
        with pytest.raises(ParamsFileError, match="is not a regular file"):
            f.load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        f.load(tmp_path / "nowhere")


def test_a_file_that_may_not_be_read_is_refused(f, nobody):
    f.save(nobody / "p.st", np.ones(8))
    (nobody / "p.st").chmod(0)
    with pytest.raises(ParamsFileError, match=r"p\.st cannot be read.*Permission denied"):
        f.load(nobody / "p.st")


# -- writing --------------------------------------------------------------------------------------


def test_a_link_stays_and_what_it_leads_to_is_written(f, path, tmp_path):
    (tmp_path / "inner").mkdir()
    for link, target in (("latest", path), ("next", tmp_path / "inner" / "new.st")):
        (tmp_path / link).symlink_to(target)
        f.save(tmp_path / link, np.ones(8))
        assert (tmp_path / link).is_symlink()
        assert np.array_equal(f.load(target), np.ones(8))


def test_a_file_keeps_its_mode_and_a_new_one_has_that_of_the_process(f, path, tmp_path):
    path.chmod(0o640)
    f.save(path, np.ones(8))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert np.array_equal(f.load(path), np.ones(8))
    (tmp_path / "touched").touch()
    f.save(tmp_path / "new", np.ones(8))
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "touched").stat().st_mode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "p.st", "touched"]


@pytest.mark.parametrize("kind", ["folder", "folder/", "pipe", "/dev/null"])
def test_what_is_no_regular_file_is_not_replaced(f, tmp_path, kind):
    if kind.startswith("folder"):
        (tmp_path / kind).mkdir()
    elif kind == "pipe":
        os.mkfifo(tmp_path / kind)
    before = (tmp_path / kind).stat()
    with pytest.raises(ParamsFileError, match=kind):
        f.save(os.path.join(tmp_path, kind), np.ones(8))
    assert (tmp_path / kind).stat().st_mode == before.st_mode
    assert {p.name for p in tmp_path.iterdir()} <= {kind.strip("/")}


def test_a_folder_that_is_not_there_is_no_file_of_that_name(f, tmp_path):
    with pytest.raises(ParamsFileError, match="missing/"):
        f.save(f"{tmp_path}/missing/", np.ones(8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["missing", "p.st"])
def test_a_folder_that_is_none_is_an_os_error_with_the_path_that_was_given(f, path, folder):
    with pytest.raises((FileNotFoundError, NotADirectoryError)) as caught:
        f.save(path.parent / folder / "q.st", np.ones(8))
    assert caught.value.filename == str(path.parent / folder / "q.st")
    assert [p.name for p in path.parent.iterdir()] == ["p.st"]


def test_what_may_not_be_written_is_not(f, nobody):
    f.save(nobody / "p.st", np.ones(8))
    (nobody / "p.st").chmod(0o444)
    with pytest.raises(PermissionError, match=r"p\.st"):
        f.save(nobody / "p.st", np.zeros(8))
    assert np.array_equal(f.load(nobody / "p.st"), np.ones(8))
    nobody.chmod(0o555)
    with pytest.raises(PermissionError, match=r"new\.st"):
        f.save(nobody / "new.st", np.ones(8))
    nobody.chmod(0o755)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_where_writing_fails_the_old_file_is_as_it_was_and_nothing_is_left_beside(
    f, path, monkeypatch, error
):
    def full(number):
        raise error

    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(type(error)) as caught:
        f.save(path, np.ones(8))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["p.st"]
    if isinstance(error, OSError):
        assert str(path) in str(caught.value)


# -- params ---------------------------------------------------------------------------------------


def test_params_are_saved_from_a_tree_as_from_a_vector(f, path):
    f.save(path, {"b": np.arange(6.0).reshape(2, 3), "a": np.array([7, 8])})
    assert np.array_equal(f.load(path), [7, 8, 0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize(
    "leaf", [np.array([1j, 2]), np.array(["1", "2"]), np.array([True, False]), [None, 1]]
)
def test_what_is_no_real_number_is_refused_in_trees_and_vectors_alike(f, path, leaf):
    before = path.read_bytes()
    tree = {"a": leaf, "b": np.zeros((2, 3))}
    vector = np.resize(np.asarray(leaf), 8)
    for save in (lambda: f.save(path, tree), lambda: f.layout.ravel(tree)):
        with pytest.raises(ParamsDtypeError, match="dtype .* for parameter 'a'"):
            save()
    with pytest.raises(ParamsDtypeError, match=f"got dtype {vector.dtype}"):
        f.save(path, vector)
    assert path.read_bytes() == before


def test_a_leaf_that_is_no_array_is_refused_by_its_name(f):
    with pytest.raises(InputError, match="parameter 'a' is a builtins.list that NumPy cannot read"):
        f.layout.ravel({"a": [[1.0], [2.0, 3.0]], "b": np.zeros((2, 3))})


def test_narrow_floats_of_other_libraries_are_real_numbers(f):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    a = np.array([1.5, 2.5], ml_dtypes.bfloat16)
    assert np.array_equal(f.layout.ravel({"a": a, "b": np.zeros((2, 3))})[:2], [1.5, 2.5])


@pytest.mark.parametrize("name", ["__metadata__", "\ud800"])
def test_a_name_that_safetensors_does_not_take_is_refused(tmp_path, name):
    f = gb.bridge(lambda p, x: x, params={name: np.zeros(2)}, backend="numpy")
    with pytest.raises(ParamsFileError, match="cannot be written"):
        f.save(tmp_path / "p", f.params)
    assert not list(tmp_path.iterdir())
