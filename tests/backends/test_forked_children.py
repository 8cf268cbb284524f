"""What the frameworks do in forked children: they compute, or are refused at once; nothing waits for ever."""

import os
import pathlib
import subprocess
import sys

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


# A pool loses a task that its worker cannot read, and waits for it for ever.
POOLS = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
fork = multiprocessing.get_context("fork")
def use(task):
    return grad(lambda p: np.sum(task["f"](p, X)))(task["p"])
def tell(work):
    try:
        print(work())
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
def in_pools(f, p):
    task = {"f": f, "p": p}
    use(task)
    with fork.Pool(1) as pool:
        tell(lambda: pool.map_async(use, [task]).get(30))
        tell(lambda: pool.apply_async(len, [[f, f]]).get(30))
    with ProcessPoolExecutor(1, mp_context=fork) as pool:
        tell(lambda: pool.submit(use, task).result(30))
"""


@pytest.mark.parametrize("backend", MODELS)
def test_a_bridge_that_a_pool_of_forked_workers_is_handed_is_refused_where_it_is_used(backend, run_forking):
    pytest.importorskip(backend)
    lines = run_forking(SIZES, MODELS[backend], POOLS, "in_pools(bridged(), bridged().params)")
    refusal = f"ForkError: {NAMES[backend]} was started in process"
    assert [line[: len(refusal)] for line in lines] == [refusal, "2", refusal]


def test_a_keras_model_that_a_pool_of_forked_workers_is_handed_is_refused_where_it_is_used(run_forking):
    pytest.importorskip("keras")
    lines = run_forking(
        POOLS,
        """
        import keras
        X = np.ones((3, 4))
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)])
        f = gb.bridge(model)
        in_pools(f, f.params)
        """,
    )
    assert [line[:36] for line in lines] == [
        "ForkError: TensorFlow was started in",
        "2",
        "ForkError: TensorFlow was started in",
    ]


# Nobody of ours was there when it was started, nor when the process was forked.
ALONE = {
    "jax": "import jax, jax.numpy as jnp\nstart = lambda: jnp.ones((300, 300)) @ jnp.ones(300)",
    "tensorflow": "import tensorflow as tf\nstart = lambda: tf.linalg.matvec(tf.ones((300, 300)), tf.ones(300))",
    "torch": "import torch\ntorch.set_num_threads(4)\nstart = lambda: torch.ones(800, 800) @ torch.ones(800, 800)",
}
FIRST_IN_THE_CHILD = """
def child():
    import numpy as np
    import gradbridge as gb
    def line(p, x):
        return x @ p if not hasattr(x, "numpy") or hasattr(x, "mm") else __import__("tensorflow").linalg.matvec(x, p)
    try:
        f = gb.bridge(line, params=np.ones(800), backend=NAME)
        return str(f(np.ones(800), np.ones((900, 800)))[0])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""


@pytest.mark.parametrize("backend", ALONE)
@pytest.mark.parametrize("way", ["fork", "forkserver"])
def test_what_was_started_before_gradbridge_was_imported_is_seen_in_the_child(backend, way, tmp_path):
    pytest.importorskip(backend)
    folders = [str(tmp_path), str(pathlib.Path(__file__).parents[1]), *filter(None, sys.path)]
    (tmp_path / "alone.py").write_text(f"NAME = {backend!r}\n{ALONE[backend]}\nstart()\n{FIRST_IN_THE_CHILD}")
    if way == "fork":
        program = "from alone import child\nfrom forked import forked\nprint(forked(child))"
    else:
        program = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["alone"])
if __name__ == "__main__":
    from alone_name import child
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        print(pool.submit(child).result(60))
"""
        (tmp_path / "alone_name.py").write_text("def child():\n    import alone\n    return alone.child()\n")
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    expected = "800.0" if backend == "torch" else f"ForkError: {NAMES[backend]} was started in process"
    assert done.stdout.startswith(expected), done.stdout + done.stderr


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_child_that_is_forked_while_another_thread_bridges_for_the_first_time_waits_for_no_import(
    backend, run_forking
):
    pytest.importorskip(backend)
    lines = run_forking(
        f"""
        import sys, threading, time
        def first():
            return gb.bridge(lambda p, x: x @ p, params=np.ones(3), backend={backend!r}).params
        thread = threading.Thread(target=first)
        thread.start()
        while {backend!r} not in sys.modules:  # in the middle of its import
            time.sleep(0.001)
        print(forked(first))
        thread.join()
        """
    )
    assert lines == ["[1. 1. 1.]"]


def test_a_child_that_is_forked_while_another_thread_starts_jax_does_not_wait_for_it(run_forking):
    pytest.importorskip("jax")
    lines = run_forking(
        SIZES,
        MODELS["jax"],
        """
        import threading, time
        f = bridged()
        thread = threading.Thread(target=lambda: slope(f))
        thread.start()
        time.sleep(0.001)
        said = forked(lambda: slope(f))
        print(said == expected or said.startswith("ForkError: JAX was started in process"))  # whoever came first
        thread.join()
        """,
    )
    assert lines == ["True"]
