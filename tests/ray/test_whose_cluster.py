"""Whose cluster it is, the command that looks at one, and the page's code: each in processes of their own."""

import os
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("ray")

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "ray.md"

MODEL = """
import numpy as np, autograd.numpy as anp
from gradbridge_ray import shard_rows

def made(**options):
    return shard_rows(lambda p, x: anp.dot(x, p), workers=2, params=np.ones(3), backend="autograd", cpus_per_worker=0.5, **options)

X = np.arange(12.0).reshape(4, 3)
"""
COMMAND = """
import sys, gradbridge, gradbridge_ray
from gradbridge import cli
gradbridge.default_registry().register(gradbridge_ray)  # as its entry point does
sys.argv[1:] = ["ray", "status", *sys.argv[1:]]
cli.main()
"""


def run(code, *arguments, **options):
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_a_cluster_that_was_started_for_the_workers_ends_with_them():
    done = run(
        MODEL
        + """
import ray, gc
with made() as f, made() as other:
    np.testing.assert_array_equal(f(f.params, X), X.sum(axis=1))
    f.close()
    assert ray.is_initialized()                      # the other one is in it
    np.testing.assert_array_equal(other(other.params, X), X.sum(axis=1))
assert not ray.is_initialized()
with made() as f:                                    # and another one is started
    np.testing.assert_array_equal(f(f.params, X), X.sum(axis=1))
f = made()                                           # and ended at exit, if nobody closes it
np.testing.assert_array_equal(f(f.params, X), X.sum(axis=1))
"""
    )
    assert done.returncode == 0, done.stderr


def test_a_cluster_that_the_program_has_joined_is_used_and_left_as_it_is():
    done = run(
        MODEL
        + """
import ray
from gradbridge_ray import ClusterError
ray.init(address="local", num_cpus=3, include_dashboard=False, logging_level="ERROR", namespace="theirs")
value = ray.put(1)
with made() as f:
    R = f.place(X)
    np.testing.assert_array_equal(f(f.params, R), X.sum(axis=1))
assert ray.get(value) == 1
f = made()
R = f.place(X)
ray.shutdown()
for rows in (R, X):
    try:
        f(f.params, rows)
    except ClusterError as error:
        print(error)
ray.init(address="local", num_cpus=3, include_dashboard=False, logging_level="ERROR")
for rows in (R, X):
    try:
        f(f.params, rows)
    except ClusterError as error:
        print(error)
try:
    R + 1.0
except ClusterError as error:
    print(error)
f.close()
assert ray.is_initialized()
"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the workers were in is gone") == 4
    assert done.stdout.count("in a Ray cluster that this process is not in any more; place them again") == 1


def test_the_command_shows_the_workers_of_a_running_program_and_says_where_there_is_none():
    none = run(COMMAND, "--address", "127.0.0.1:1")
    assert none.returncode == 1
    assert "no Ray cluster runs at 127.0.0.1:1, so there are no workers to look at" in none.stderr
    program = (
        MODEL
        + """
import sys, ray
f = made()
f(f.params, X)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        address = running.stdout.readline().strip()
        # A cluster of its own Ray starts with a token, which is asked for where an address is given.
        shown = run(
            COMMAND, "--address", address, env={**os.environ, "COLUMNS": "120", "RAY_AUTH_MODE": "token"}
        )
        running.communicate(timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"[0-9a-f]{8}:1 ", shown.stdout), shown.stdout
    for heading in ("rows", "forwards", "seconds", "restarts"):
        assert heading in shown.stdout


def test_without_ray_the_line_that_installs_it_is_named():
    done = run(
        """
import sys
sys.modules["ray"] = None
import gradbridge
from gradbridge.errors import BackendUnavailableError
try:
    from gradbridge_ray import shard_rows
except BackendUnavailableError as error:
    print(error)
"""
    )
    assert done.returncode == 0, done.stderr
    assert 'pip install "ray>=2.40"' in done.stdout


def test_naming_the_plugin_imports_neither_ray_nor_a_framework():
    code = (
        "import sys, gradbridge_ray as g; g.__all__; "
        "print([m for m in ('ray', 'torch', 'autograd', 'rich') if m in sys.modules])"
    )
    assert run(code).stdout.strip() == "[]"


def test_the_pages_code_runs_as_printed(tmp_path):
    pytest.importorskip("torch")
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    script = tmp_path / "guide.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=140)
    assert done.returncode == 0, done.stderr
