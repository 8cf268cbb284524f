"""What the frameworks do in forked children: they compute, or are refused at once; nothing waits for ever."""

import pytest

# Large enough that a framework shares the work out among its threads.
SIZES = """
r = np.random.RandomState(0)
X, w, v = r.normal(size=(400, 500)), r.normal(size=(500, 500)) / 500, r.normal(size=500)
slope = lambda f, p=None: np.round(grad(lambda p: np.sum(f(p, X)))(f.params if p is None else p)[:3], 9)
ours = grad(lambda p: np.sum(np.tanh(X @ np.reshape(p[500:], (500, 500))) @ p[:500]))
expected = str(np.round(ours(np.concatenate([v, w.ravel()]))[:3], 9))
"""

MODELS = {
    "jax": """
        import jax
        def wave(p, x):
            return jax.numpy.tanh(x @ p["w"]) @ p["v"]
        bridged = lambda: gb.bridge(wave, backend="jax", params={"v": v, "w": w})
        """,
    "tensorflow": """
        import tensorflow as tf
        def wave(p, x):
            return tf.linalg.matvec(tf.tanh(x @ p["w"]), p["v"])
        bridged = lambda: gb.bridge(wave, backend="tensorflow", params={"v": v, "w": w})
        """,
}
STARTS = {"jax": "jax.numpy.ones(3)", "tensorflow": "tf.ones(3)"}
NAMES = {"jax": "JAX", "tensorflow": "TensorFlow"}


@pytest.mark.parametrize("backend", MODELS)
def test_a_framework_that_the_child_starts_computes_there(backend, run_forking):
    pytest.importorskip(backend)
    lines = run_forking(
        SIZES,
        MODELS[backend],
        """
        print(forked(lambda: slope(bridged())) == expected)
        print(forked(lambda: (slope(bridged()), forked(lambda: slope(bridged())))[1]))
        """,
    )
    assert lines[0] == "True"
    assert lines[1].startswith(f"ForkError: {NAMES[backend]} was started in process")


@pytest.mark.parametrize("backend", MODELS)
def test_what_the_user_started_before_the_fork_is_refused_at_once(backend, run_forking):
    # By nothing of ours: a bridge that was made and never called, one that is made in the child, one from a pickle.
    pytest.importorskip(backend)
    lines = run_forking(
        SIZES,
        MODELS[backend],
        f"""
        {STARTS[backend]}
        print(forked(lambda: slope(bridged())))
        f = bridged()
        kept = pickle.dumps(f)
        for use in (lambda: slope(f), lambda: f.params, lambda: f.model(f.params), lambda: f.jacobian(f.params, X),
                    lambda: pickle.loads(kept), lambda: gb.build("mlp", sizes=[2, 1], backend={backend!r})):
            print(forked(use))
        """,
    )
    assert len(lines) == 7
    for line in lines:
        assert line.startswith(f"ForkError: {NAMES[backend]} was started in process")


def test_jax_is_not_started_by_bridging_a_function_of_numpy_parameters(run_forking):
    pytest.importorskip("jax")
    lines = run_forking(
        SIZES,
        MODELS["jax"],
        """
        from jax._src import xla_bridge
        f = pickle.loads(pickle.dumps(bridged()))
        f.params, f.output_spec(X), str(f.capabilities), repr(f), f.layout
        print(xla_bridge._backends, forked(lambda: slope(f)) == expected)
        slope(f)
        print(bool(xla_bridge._backends))
        """,
    )
    assert lines == ["{} True", "True"]  # the second says that this is where JAX tells


def test_a_keras_model_is_refused_in_the_child_and_goes_on_in_the_parent(run_forking):
    pytest.importorskip("keras")
    lines = run_forking(
        """
        import keras
        X = np.ones((300, 400))
        model = keras.Sequential([keras.Input((400,)), keras.layers.Dense(400, "tanh"), keras.layers.Dense(1)])
        f = gb.bridge(model)
        slope = lambda f: grad(lambda p: np.sum(f(p, X)))(f.params)[:3]
        kept = pickle.dumps(f)
        for use in (lambda: slope(f), lambda: f.params, lambda: pickle.loads(kept), lambda: gb.bridge(model)):
            print(forked(use))
        print(slope(f).shape)
        """
    )
    *refusals, shape = lines
    assert len(refusals) == 4
    for line in refusals:
        assert line.startswith("ForkError: TensorFlow was started in process")
    assert shape == "(3,)"


def test_torch_with_several_threads_computes_in_children_and_keeps_them_in_the_parent(run_forking):
    pytest.importorskip("torch")
    lines = run_forking(
        SIZES,
        """
        import torch
        torch.set_num_threads(4)
        def wave(p, x):
            return torch.tanh(x @ p["w"]) @ p["v"]
        bridged = lambda: gb.bridge(wave, backend="torch", params={"v": v, "w": w})
        f = bridged()
        print(str(slope(f)) == expected, torch.get_num_threads())
        kept = pickle.dumps(f)
        print(forked(lambda: slope(f)) == expected)
        print(forked(lambda: slope(pickle.loads(kept))) == forked(lambda: slope(bridged())) == expected)
        print(forked(lambda: (slope(f), torch.set_num_threads(3), slope(f))[2]) == expected)
        print(forked(lambda: (f.params.shape, f.model(f.params), f.jacobian(f.params, X[:2]).shape)[2]))
        print(str(slope(f)) == expected, torch.get_num_threads())
        """,
    )
    assert lines == ["True 4", "True", "True", "True", "(2, 250500)", "True 4"]


def test_torch_computes_in_children_that_are_forked_while_other_threads_draw_random_masks(run_forking):
    pytest.importorskip("torch")
    lines = run_forking(
        """
        import threading
        import torch
        torch.set_num_threads(1)
        model = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Dropout(), torch.nn.Linear(5, 1))
        f, x, over = gb.bridge(model, mode="train"), np.ones((20, 5)), threading.Event()
        slope = lambda: grad(lambda p: np.sum(f(p, x)))(f.params)
        expected = str(slope())
        def draw():
            while not over.is_set():
                slope()
        threads = [threading.Thread(target=draw) for _ in range(3)]
        for thread in threads:
            thread.start()
        print([forked(slope) == expected for _ in range(8)])
        over.set()
        """,
    )
    assert lines == [str([True] * 8)]


def test_a_class_of_five_methods_over_torch_computes_in_children_with_several_threads_in_the_parent(
    run_forking,
):
    pytest.importorskip("torch")
    pytest.importorskip("seldonian")
    lines = run_forking(
        """
        import torch
        from gradbridge_seldonian import SupervisedPytorchBaseModel
        torch.set_num_threads(4)
        class Net(SupervisedPytorchBaseModel):
            def create_model(self, **kwargs):
                return torch.nn.Sequential(torch.nn.Linear(500, 500), torch.nn.Tanh(), torch.nn.Linear(500, 1))
        model = Net(500, 1)
        x, p = np.ones((400, 500)), np.array(model.initial_solution())
        slope = lambda: np.round(grad(lambda p: np.sum(model.predict(p, x)))(p)[:3], 2)
        print(str(slope()) == forked(slope), torch.get_num_threads())
        """,
    )
    assert lines == ["True 4"]
