"""A worker or a node that is lost costs time, never a number; what cannot go on says so."""

import os
import signal
import threading
import time

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad, value_and_grad
from autograd.core import make_vjp

ray = pytest.importorskip("ray")

import gradbridge as gb  # noqa: E402
from gradbridge.errors import AuditError, GuestError  # noqa: E402
from gradbridge_ray import ClusterError, ShardTimeoutError, shard_rows, waiting  # noqa: E402

DRAW = np.random.default_rng(1)
X = DRAW.normal(size=(90, 4))
P = DRAW.normal(size=4)
HALF = {"workers": 2, "cpus_per_worker": 0.5}


def wave(p, x, seconds=0, fault=None):
    """sin(x p), after so many seconds, unless a row is too large."""
    import os
    import time

    time.sleep(seconds)
    if fault is not None and anp.max(x) > 1e3:
        if fault == "exit":
            os._exit(1)
        raise ValueError("a row is too large")
    return anp.sin(anp.dot(x, p))


def sharded(function=wave, **options):
    return shard_rows(function, params=P, backend="autograd", audit="off", **{**HALF, **options})


def squares(f, x, **more):
    return lambda p: anp.sum(f(p, x, **more) ** 2)


def expected(p=P):
    """The gradient of the sum of squares, in closed form."""
    z = X @ p
    return 2 * (np.sin(z) * np.cos(z)) @ X


def kill(f, worker):
    os.kill(list(f.status().values())[worker].pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def f(cluster):
    with sharded() as made:
        made(P, X)
        yield made


def test_a_worker_killed_between_forward_and_backward(f):
    whole = grad(squares(f, f.place(X)))(P)
    restarts = [t.restarts for t in f.status().values()]
    pull, _ = make_vjp(squares(f, f.place(X)), P)
    kill(f, 1)
    assert np.array_equal(pull(1.0), whole)  # the residuals are made again, bit for bit
    np.testing.assert_allclose(whole, expected(), rtol=1e-13)
    now = list(f.status().values())
    assert [t.restarts - before for t, before in zip(now, restarts)] == [0, 1]
    assert now[1].forwards > 1  # what was done before is not forgotten


def test_all_workers_killed_while_they_compute(f):
    slow = squares(f, f.place(X), seconds=2)
    whole = value_and_grad(squares(f, f.place(X)))(P)

    def killer():
        time.sleep(0.7)
        for worker in (0, 1):
            kill(f, worker)

    thread = threading.Thread(target=killer)
    thread.start()
    value, gradient = value_and_grad(slow)(P)
    thread.join()
    assert value == whole[0]
    assert np.array_equal(gradient, whole[1])


def test_a_worker_killed_before_a_second_derivative_is_pulled_back(f):
    rows, direction = f.place(X), np.ones(4)
    product = make_vjp(grad(squares(f, rows)), P)[0]
    kill(f, 0)
    z = X @ P
    hessian = (X.T * (2 * np.cos(2 * z))) @ X
    np.testing.assert_allclose(product(direction), hessian @ direction, rtol=1e-12)


def test_a_node_that_is_removed_during_a_run(cluster):
    node = cluster.add_node(num_cpus=1, resources={"second": 1})
    with shard_rows(wave, params=P, backend="autograd", audit="off", workers=4, cpus_per_worker=1) as f:
        rows = f.place(X)
        whole = grad(squares(f, rows))(P)
        there = [t.node for t in f.status().values()]
        assert node.node_id[:8] in there  # the workers are spread over the nodes
        pull, _ = make_vjp(squares(f, rows), P)
        cluster.remove_node(node)
        assert np.array_equal(pull(1.0), whole)
        assert np.array_equal(grad(squares(f, rows))(P), whole)
        now = list(f.status().values())
        assert node.node_id[:8] not in [t.node for t in now]
        assert sum(t.restarts for t in now) >= 1


def test_a_model_that_raises_on_one_worker_leaves_the_others_usable(f):
    bad = X.copy()
    bad[77] = 1e6
    with pytest.raises(
        GuestError, match=r"wave, shard 2 of 2 \(rows 45 to 89\): .*ValueError: a row is too large"
    ) as raised:
        f(P, f.place(bad), fault="raise")
    assert "in wave" in "".join(raised.value.__notes__)  # the traceback in the worker
    np.testing.assert_allclose(grad(squares(f, X))(P), expected(), rtol=1e-13)
    assert sum(t.restarts for t in f.status().values()) >= 0


def test_a_model_that_ends_its_process_on_some_rows_is_an_error_in_the_end(f):
    bad = X.copy()
    bad[3] = 1e6
    with pytest.raises(ClusterError, match=r"shard 1 of 2 \(rows 0 to 44\): the worker died each time"):
        f(P, bad, fault="exit")
    np.testing.assert_allclose(grad(squares(f, X))(P), expected(), rtol=1e-13)


def test_a_worker_that_is_late_is_named_and_the_next_call_goes_on(cluster):
    with sharded(timeout=2.0) as f:
        f(P, X)
        with pytest.raises(
            ShardTimeoutError, match=r"shard 1 of 2 \(rows 0 to 44\).* did not answer within timeout=2 s"
        ):
            f(P, X, seconds=60)
        np.testing.assert_allclose(grad(squares(f, X))(P), expected(), rtol=1e-13)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGUSR1, SystemExit)]
)
def test_what_a_signal_raises_ends_a_call_and_the_next_one_goes_on(f, number, error):
    def leave(number, frame):
        raise error

    def interrupt():
        time.sleep(1)
        os.kill(os.getpid(), number)

    before = signal.signal(number, leave)  # in the background of a shell an interrupt is ignored
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(error):
            f(P, X, seconds=100)
        thread.join()
    finally:
        signal.signal(number, before)
    np.testing.assert_allclose(grad(squares(f, X))(P), expected(), rtol=1e-13)


def test_a_restarted_worker_with_another_model_is_noticed(cluster):
    def drawn():
        import os

        # The same in all first processes, which are children of the same one, and another in the next.
        import ray

        shift = 1.0 if ray.get_runtime_context().was_current_actor_reconstructed else 0.0
        assert os.getpid()
        return gb.bridge(lambda p, x: anp.dot(x, p) + shift, params=P, backend="autograd")

    with shard_rows(drawn, audit="off", **HALF) as f:
        np.testing.assert_allclose(f(P, X), X @ P, rtol=1e-14)
        kill(f, 1)
        with pytest.raises(AuditError, match="the workers hold different models"):
            f(P, X)


def test_a_cluster_without_room_says_so_and_does_not_wait(cluster, monkeypatch):
    with pytest.raises(ClusterError, match=r"workers with 500 CPUs in all .* the Ray cluster has \d+"):
        sharded(workers=500, cpus_per_worker=1)
    monkeypatch.setattr(waiting, "GRACE", 1.0)
    free = int(ray.available_resources()["CPU"])

    @ray.remote
    class Holder:
        def here(self):
            return True

    holder = Holder.options(num_cpus=free - 1).remote()
    ray.get(holder.here.remote())
    try:
        with pytest.raises(ClusterError, match="workers wait for a place since 1 s"):
            sharded(workers=3, cpus_per_worker=1)
    finally:
        ray.kill(holder)


def test_a_closed_bridge_says_so(cluster):
    f = sharded(workers=1)
    f(P, X)
    f.close()
    f.close()  # once more is once
    with pytest.raises(ClusterError, match="was closed; make another one with shard_rows"):
        f(P, X)
    assert ray.is_initialized()  # the cluster is not ours


def test_wrong_pulls_of_a_released_evaluation_do_not_happen_after_its_workers_forgot_it(f):
    rows = f.place(X)
    pull, _ = make_vjp(squares(f, rows), P)
    first = pull(1.0)
    for _ in range(3):
        grad(squares(f, rows))(P)  # made and dropped
    assert np.array_equal(pull(1.0), first)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_is_told_rather_than_left_waiting(f):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            f(P, X)
            said = "nothing"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    assert "ClusterError: this process was forked from one that had joined a Ray cluster" in said
    np.testing.assert_allclose(grad(squares(f, X))(P), expected(), rtol=1e-13)
