"""What a forked child is told of a framework that did not come along, and what goes on working there."""

# A framework with a thread that a fork leaves behind: nothing is computed without it.
WAITING = """
import queue, threading
from gradbridge.extend import FunctionalAdapter, FunctionModel, GuestOptions, Runtime, Traits
from gradbridge_autograd.framework import AutogradFramework

class Pool(Runtime):
    name = "Waiting"
    asked, done, worker = queue.SimpleQueue(), queue.SimpleQueue(), None

    def is_started(self):
        return Pool.worker is not None

    def start(self):
        if Pool.worker is None:
            Pool.worker = threading.Thread(target=self.work, daemon=True)
            Pool.worker.start()

    def work(self):
        while True:
            self.done.put(self.asked.get()())

    def compute(self, step):
        self.start()
        self.asked.put(step)
        return self.done.get()

pool = Pool()

class Waiting(AutogradFramework):
    traits = Traits(has_higher_orders=True, runtime=pool)

class WaitingFunction(FunctionModel):
    def common_dtype(self, dtypes):
        return np.dtype(np.float64)

    def isolated(self, thunk, inputs, noise, record):
        return pool.compute(thunk)

def wave(p, x):
    return np.sin(x @ p["w"])

def bridged():
    framework = Waiting()
    options = GuestOptions(params={"w": np.array([0.3, -0.7])})
    return gb.bridge(FunctionalAdapter(framework, WaitingFunction(framework, wave, options, np.dtype("f8"))))

X = np.arange(6.0).reshape(3, 2)
f, p = bridged(), np.array([0.3, -0.7])
slope = lambda f: grad(lambda p: np.sum(f(p, X)))(p)
expected = str(X.T @ np.cos(X @ p))
"""


def test_every_use_of_a_bridge_is_refused_where_its_framework_did_not_come_along(run_forking):
    lines = run_forking(
        WAITING,
        """
        from copy import deepcopy
        from autograd import make_vjp
        pull, value = make_vjp(lambda p: f(p, X))(p)
        kept = pickle.dumps(f)
        chunked = gb.bridge(f.adapter, rows_per_chunk=2)
        uses = [
            lambda: f(p, X), lambda: slope(f), lambda: f.params, lambda: f.model(p), lambda: f.jacobian(p, X),
            lambda: f.vjp(p, X, cotangent=np.ones(3)), lambda: pull(np.ones(3)), lambda: slope(chunked),
            lambda: pickle.loads(kept), lambda: pickle.dumps(f), lambda: deepcopy(f), lambda: f.audit(p, X),
        ]
        for use in uses:
            print(forked(use).replace(str(os.getpid()), "PARENT"))
        print(str(slope(f)) == expected)
        """,
    )
    *refusals, still_right = lines
    assert len(refusals) == 12
    for line in refusals:
        assert line.startswith("ForkError: Waiting was started in process PARENT, which then forked this one")
        assert "get_context('spawn')" in line
        assert "n_workers=1" in line
    assert still_right == "True"  # the parent goes on


def test_a_framework_that_only_the_child_starts_computes_there(run_forking):
    lines = run_forking(
        WAITING,
        """
        kept = pickle.dumps(f)
        print(forked(lambda: slope(f)) == forked(lambda: slope(pickle.loads(kept))) == expected)
        print(forked(lambda: (slope(f), forked(lambda: slope(f)))[1])[:60])
        """,
    )
    assert lines[0] == "True"
    assert lines[1].startswith(
        "ForkError: Waiting was started in process"
    )  # by the child, before it forked, too


def test_a_framework_that_comes_to_us_after_the_fork_is_looked_at_then(run_forking):
    lines = run_forking(
        WAITING,
        """
        pool.start()
        print(forked(lambda: (Pool(), bridged(), slope(bridged()))))
        print(forked(lambda: type("New", (Pool,), {"is_started": lambda self: True})().require()))
        print(forked(lambda: type("Here", (Pool,), {"runs_here": lambda self: True})().require()))
        """,
    )
    assert lines[0].startswith("ForkError")
    assert lines[1].startswith("ForkError")
    assert lines[2] == "None"


def test_the_refusal_is_no_value_error_and_comes_whole_through_a_pool_of_workers(run_forking):
    lines = run_forking(
        WAITING,
        """
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        slope(f)
        def work(n):
            return slope(f)
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
            try:
                list(pool.map(work, range(2)))
            except gb.errors.ForkError as error:
                print(isinstance(error, ValueError), isinstance(error, gb.GradbridgeError), "Waiting" in str(error))
        """,
    )
    assert lines == ["False True True"]


def test_numpy_autograd_and_numeric_guests_compute_in_forked_children(run_forking):
    lines = run_forking(
        """
        x = np.array([0.2, -0.4, 1.1])
        derived = gb.primitive(backend="autograd")(lambda x: np.sum(np.sin(x)))
        numeric = gb.primitive(gradient="numeric")(lambda x: np.sum(np.sin(x)))
        written = gb.primitive(lambda x: np.sin(x))
        written.defvjp(lambda answer, x: lambda v: v * np.cos(x))
        for f in (derived, numeric, lambda x: np.sum(written(x))):
            grad(f)(x)
            print(forked(lambda: np.abs(grad(f)(x) - np.cos(x)).max() < 1e-7))
        """,
    )
    assert lines == ["True", "True", "True"]


def test_a_lock_that_another_thread_held_is_free_in_the_child_and_one_s_own_is_not(run_forking):
    lines = run_forking(
        """
        import threading
        from gradbridge.forks import fork_safe_lock
        theirs, own, held, over = fork_safe_lock(), fork_safe_lock(), threading.Event(), threading.Event()
        def hold():
            with theirs:
                held.set()
                over.wait()
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        with own:
            print(forked(lambda: (theirs.acquire(), own._is_owned())))
        print(theirs.acquire(blocking=False))
        over.set()
        """,
    )
    assert lines == ["(True, True)", "False"]


def test_a_child_computes_what_other_threads_of_its_parent_were_in_the_middle_of(run_forking):
    lines = run_forking(
        """
        import threading
        inside, over = threading.Event(), threading.Event()
        def slow(p, x):
            if threading.current_thread() is not threading.main_thread():
                inside.set()
                over.wait()
            return np.sin(x @ p["w"])
        f = gb.bridge(slow, backend="autograd", params={"w": np.ones(3)}, reuse=2, audit="off")
        x = np.ones((2, 3))
        slope = lambda: grad(lambda p: np.sum(f(p, x)))(f.params)
        thread = threading.Thread(target=slope)
        thread.start()
        inside.wait()
        print(forked(slope) == str(2 * np.cos(3.0) * np.ones(3)))
        over.set()
        """,
    )
    assert lines == ["True"]


def test_a_fork_waits_until_another_thread_has_started_a_framework_and_the_child_is_told(run_forking):
    lines = run_forking(
        WAITING,
        """
        import time
        inside, start = threading.Event(), Pool.start
        def slowly(self):
            inside.set()
            time.sleep(0.3)
            start(self)
        Pool.start = slowly
        thread = threading.Thread(target=lambda: slope(f))
        thread.start()
        inside.wait()
        print(forked(lambda: slope(f)), Pool.worker is not None)
        thread.join()
        print(str(slope(f)) == expected)
        """,
    )
    assert lines[0].startswith("ForkError: Waiting was started in process")
    assert lines[0].endswith("True")
    assert lines[1] == "True"


def test_a_thread_that_forks_while_it_starts_a_framework_waits_for_nobody(run_forking):
    lines = run_forking(
        WAITING,
        """
        start = Pool.start
        def forking(self):
            if Pool.worker is None:
                print(forked(lambda: "done", seconds=5))
            start(self)
        Pool.start = forking
        print(str(slope(f)) == expected, forked(lambda: slope(f))[:9])
        """,
    )
    assert lines == ["done", "True ForkError"]
