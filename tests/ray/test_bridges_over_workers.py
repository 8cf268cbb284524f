"""A bridge over workers is a bridge: memory, copies, threads, traces, and a table of what they do."""

import copy
import pickle
import threading
import time

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad, value_and_grad

ray = pytest.importorskip("ray")
torch = pytest.importorskip("torch")

from row_models import X, close, loss, native, network  # noqa: E402

import gradbridge as gb  # noqa: E402
from gradbridge_ray import shard_rows  # noqa: E402


def test_a_bridge_is_sent_with_its_options_and_remembers_evaluations(cluster):
    given = gb.bridge(network(), dtype="float64", reuse=4)
    with shard_rows(given, workers=2, cpus_per_worker=0.5) as f:
        placed = f.place(X)
        for _ in range(3):
            gradient = grad(loss(f, placed))(f.params)
        assert (f.memory.hits, f.memory.misses) == (2, 1)
        close(gradient, native(f.params)[1])
        assert np.array_equal(f.params, given.params)
        report = f.audit(f.params, placed)
        assert report, report


def test_copies_share_the_workers_and_pickles_find_them(g, R):
    for twin in (copy.deepcopy(g), pickle.loads(pickle.dumps(g))):
        assert np.array_equal(grad(loss(twin, R))(g.params), grad(loss(g, R))(g.params))
        assert [t.pid for t in twin.status().values()] == [t.pid for t in g.status().values()]


def test_calls_in_several_threads_do_not_see_each_other(g, R):
    points = [g.params * (1 + 0.1 * i) for i in range(6)]
    expected = [grad(loss(g, R))(p) for p in points]
    found = [None] * 6

    def work(i):
        for _ in range(3):
            found[i] = grad(loss(g, R))(points[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(a, b) for a, b in zip(found, expected))


def test_residuals_are_dropped_with_their_evaluation(g, R):
    evaluations = [value_and_grad(loss(g, R))(g.params) for _ in range(5)]
    del evaluations
    until = time.monotonic() + 30  # workers hear of it when they come to it
    while any(tally.kept for tally in g.status().values()) and time.monotonic() < until:
        time.sleep(0.05)
    assert all(tally.kept == 0 for tally in g.status().values())


def test_steps_are_observed_and_arrays_of_the_caller_may_change_after_the_call(g):
    rows, p = X.copy(), g.params.copy()
    from autograd.core import make_vjp

    with gb.trace() as t:
        pull, _ = make_vjp(lambda q: anp.sum(g(q, rows) ** 2), p)
        rows[:], p[:] = 0.0, 0.0
        gradient = pull(1.0)
    assert t.counts == {"update": 1, "forward": 1, "zero": 1, "backward": 1}
    close(gradient, grad(lambda q: anp.sum(g(q, X) ** 2))(g.params))


def test_the_status_is_a_table(g, R):
    g(g.params, R)
    told = str(g.status())
    for word in ("worker", "rows", "forwards", "seconds", "restarts"):
        assert word in told
    assert len(g.status()) == 3
    with g.watch(0.05):
        g(g.params, R)
