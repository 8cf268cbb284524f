import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradbridge import ParameterLayout
from gradbridge.errors import LayoutError

shapes = st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), max_size=5)


def layout_of(shapes):
    names = tuple(f"p{i}" for i in range(len(shapes)))
    return ParameterLayout(names, tuple(shapes), ("float64",) * len(shapes))


@given(shapes)
def test_ravel_and_unravel_are_inverse(shapes):
    layout = layout_of(shapes)
    vector = np.arange(float(layout.size))
    assert np.array_equal(layout.ravel(layout.unravel(vector)), vector)
    assert {k: v.shape for k, v in layout.unravel(vector).items()} == dict(zip(layout.names, layout.shapes))


def test_ravel_takes_a_mapping_a_sequence_or_the_tree_it_came_from():
    tree = {"b": [np.ones(2), np.zeros((1, 3))], "a": np.full((), 7.0)}
    layout = ParameterLayout.of_tree(tree)
    assert layout.names == ("a", "b/0", "b/1")
    expected = [7, 1, 1, 0, 0, 0]
    assert np.array_equal(layout.ravel(tree), expected)
    assert np.array_equal(layout.ravel(layout.unravel(np.array(expected))), expected)
    assert np.array_equal(layout_of([(2,), ()]).ravel([[1, 2], 3]), [1, 2, 3])


def test_ravel_names_the_parameter_whose_shape_is_wrong():
    with pytest.raises(LayoutError, match=r"expected shape \(2,\) for parameter 'p0', got \(3,\)"):
        layout_of([(2,)]).ravel({"p0": np.ones(3)})


def test_ravel_names_what_is_missing_and_what_is_unknown():
    with pytest.raises(LayoutError, match="missing: p1; unknown: q"):
        layout_of([(2,), (1,)]).ravel({"p0": np.ones(2), "q": np.ones(1)})


def test_what_is_no_tree_of_the_layout_is_told_where_such_a_tree_is():
    such = r"; f\.layout\.unravel\(f\.params\) gives the model's own params as such a tree"
    with pytest.raises(LayoutError, match=f"a mapping of the names p0 to arrays, got NoneType{such}"):
        layout_of([(2,)]).ravel(None)
    with pytest.raises(LayoutError, match=f"expected a tree .*'w'.*, got .*'v'.*{such}"):
        ParameterLayout.of_tree({"w": np.ones(2)}).ravel({"v": np.ones(2)})


def test_unravel_says_which_shape_it_expects():
    with pytest.raises(LayoutError, match=r"expected params of shape \(2,\), got \(2, 1\)"):
        layout_of([(2,)]).unravel(np.ones((2, 1)))


def test_unravel_is_differentiable_in_the_host():
    from autograd import grad

    layout = layout_of([(2,), (2, 2)])
    g = grad(lambda p: (layout.unravel(p)["p1"] ** 2).sum())(np.arange(6.0))
    assert np.array_equal(g, [0, 0, 4, 6, 8, 10])


def test_locate_says_what_stands_where():
    layout = layout_of([(2, 3), ()])
    assert layout.locate(4) == "p0[1, 1]"
    assert layout.locate(6) == "p1"


def test_names_are_unique():
    with pytest.raises(LayoutError, match="w more than once"):
        ParameterLayout(("w", "w"), ((), ()), ("float64", "float64"))


def test_it_prints_as_a_table():
    assert "p0  (2,)  float64" in str(layout_of([(2,)]))
    assert "2 numbers" in str(layout_of([(2,)]))
