"""A specification starts no framework that would not survive a fork: what it computes with a model waits for the run."""

import pytest

pytest.importorskip("seldonian")
pytest.importorskip("jax")

PROGRAM = """
import contextlib, copy, io, warnings
import jax
from jax._src import xla_bridge
from seldonian.dataset import CustomDataSet, CustomMetaData, SupervisedDataSet, SupervisedMetaData
from seldonian.seldonian_algorithm import SeldonianAlgorithm
from gradbridge_seldonian import SeldonianModel, supervised_spec

r = np.random.RandomState(0)
X, group = r.normal(size=(200, 2)), r.randint(0, 2, 200)
y = (X @ [1.0, -1.0] + r.normal(size=200) > 0).astype(float)
meta = SupervisedMetaData("classification", ["a", "b", "f", "g", "y"], ["f", "g"], ["y"], ["a", "b"])
data = SupervisedDataSet(X, y, np.stack([group == 0, group == 1], 1).astype(int), 200, meta)
calls = []

class Counted(SeldonianModel):
    def predict(self, theta, X, **kwargs):
        calls.append(len(X))
        return super().predict(theta, X, **kwargs)

def sigmoid(p, x):
    return jax.nn.sigmoid(x @ p["w"])

def model(function=sigmoid, kind=SeldonianModel, shape=2):
    return kind(function, backend="jax", params={"w": np.ones(shape)})

def spec(model, **options):
    return supervised_spec(data, model, ["abs((PR | [a]) - (PR | [b])) <= 0.9"], [0.1], num_iters=3, **options)

def run(spec):
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return SeldonianAlgorithm(spec).run()[1]
"""


def test_specifications_do_not_start_jax_and_give_in_a_child_what_they_give_here(run_forking):
    lines = run_forking(
        PROGRAM,
        """
        def error(model, theta, X, Y, **kwargs):
            return np.mean((model.predict(theta, X) - Y) ** 2)
        def custom_error(model, theta, data, **kwargs):
            return np.mean((model.predict(theta, data[:, :2]) - data[:, 2]) ** 2)
        def rate(model, theta, data, **kwargs):
            return model.predict(theta, data[:, :2])
        table = CustomDataSet(np.column_stack([X, y]), data.sensitive_attrs, 200, CustomMetaData(["f", "g", "y"]))
        custom = supervised_spec(table, model(), ["RATE <= 0.9"], [0.1], num_iters=3, primary_objective=custom_error,
                                 custom_measure_functions={"RATE": rate})
        specs = [spec(model()), spec(model(), primary_objective=error), custom]
        print(xla_bridge._backends)
        children = [forked(lambda: run(s)) for s in specs]
        print(children == [str(run(s)) for s in specs])
        again = spec(model())  # JAX is started: it looks at once
        print(str(run(again)) == children[0], again.parse_trees[0]._shared.bridge is again.model.bridge)
        """,
    )
    assert lines == ["{}", "True", "True True"]


def test_a_look_that_waited_is_taken_once_in_a_process_whatever_is_copied(run_forking):
    lines = run_forking(
        PROGRAM,
        """
        waiting = spec(model(kind=Counted))
        print(calls)
        twins = [copy.deepcopy(waiting), pickle.loads(pickle.dumps(waiting))]
        run(twins[0])
        print(calls.count(4))  # a trial of four rows
        run(twins[1]), run(waiting)
        print(calls.count(4))
        """,
    )
    assert lines == ["[]", "3", "3"]  # at the start, and away from it


def test_what_a_look_finds_wrong_leaves_the_run_as_no_value_error(run_forking):
    lines = run_forking(
        PROGRAM,
        """
        def wide(p, x):
            return jax.nn.sigmoid(x @ p["w"])
        for made in [spec(model(wide, shape=(2, 3))), spec(model(lambda p, x: x @ p["nothing"]))]:
            try:
                run(made)
            except gb.GradbridgeError as error:
                print(isinstance(error, (ValueError, ZeroDivisionError)), str(error)[:90])
        """,
    )
    assert [line.split()[0] for line in lines] == ["False", "False"]
    assert "predictions of shape (n,)" in lines[0]
    assert "nothing" in lines[1]
