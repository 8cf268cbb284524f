"""A cluster of two nodes for all tests of this folder, each of which has a time limit."""

import signal

import pytest

LIMIT = 150


@pytest.fixture(autouse=True)
def in_time():
    """No test waits for ever."""

    def stop(number, frame):
        raise TimeoutError(f"the test took more than {LIMIT} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def cluster():
    """Two nodes; this process is on the first."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    if ray.is_initialized():
        ray.shutdown()
    head = {"num_cpus": 8, "include_dashboard": False, "object_store_memory": 200 * 1024**2}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture(scope="module")
def g(cluster):
    """A network in three workers."""
    from row_models import network

    from gradbridge_ray import shard_rows

    with shard_rows(network, workers=3, dtype="float64") as made:
        yield made


@pytest.fixture(scope="module")
def R(g):
    """Rows that are placed with them."""
    from row_models import X

    return g.place(X)


@pytest.fixture(scope="module")
def h(cluster):
    """A function with several outputs in two workers."""
    from row_models import TREE, curves

    from gradbridge_ray import shard_rows

    with shard_rows(curves, workers=2, params=TREE, backend="autograd", cpus_per_worker=0.5) as made:
        yield made
