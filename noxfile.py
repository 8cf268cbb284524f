"""Every job of the project, each in an environment of its own: `python -m nox -s NAME`."""

from __future__ import annotations

import pathlib
import tempfile

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "typecheck", "tests"]
nox.options.reuse_existing_virtualenvs = True

CONSTRAINTS = "constraints.txt"
# The engine pins a matplotlib that does not build on Python >= 3.11, so its real needs come from
# the [seldonian] extra and the engine itself without any.
ENGINE = "seldonian-engine==0.8.11"
TESTING = ["pytest", "hypothesis"]
# Frameworks that are also tested alone, and what their tests need besides.
ONLY: dict[str, list[str]] = {"torch": [], "jax": ["flax", "equinox"], "tensorflow": []}
# Libraries whose models are tested as guests; the last two by the examples of third parties' backends.
MODULES = ["flax", "equinox", "mygrad", "tinygrad"]
QUIET = {
    "OMP_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "MPLBACKEND": "Agg",
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
}


def install(session: nox.Session, *requirements: str, engine: bool = False, release: str = "") -> None:
    """Install under the constraints; `release` replaces the pin of that one distribution."""
    constraints = CONSTRAINTS
    if release:
        name = release.split("==")[0]
        lines = pathlib.Path(CONSTRAINTS).read_text().splitlines()
        kept = [line for line in lines if line.split("==")[0].lower() != name]
        path = pathlib.Path(tempfile.mkdtemp()) / "constraints.txt"
        path.write_text("\n".join([*kept, release]) + "\n")
        constraints = str(path)
    session.install("-c", constraints, *requirements)
    if engine:
        session.install("-c", constraints, "--no-deps", ENGINE)


@nox.session
def demo(session: nox.Session) -> None:
    """The main job: PyTorch models trained under behavioral constraints by the real Seldonian Engine."""
    install(session, "-e", ".[torch,seldonian]", engine=True)
    session.run("gradbridge", "demo", *session.posargs, env=QUIET)


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, with every framework in one process; then the smaller environments."""
    install(session, "-e", ".[all]", *TESTING, *MODULES, "hatchling", engine=True)
    session.run("pytest", *session.posargs, env=QUIET)
    if not session.posargs:
        for name in ("tests_bare", "tests_autograd18", *(f"tests_only({name})" for name in ONLY)):
            session.notify(name)


@nox.session
def tests_bare(session: nox.Session) -> None:
    """Core and the NumPy guest with no framework installed at all."""
    install(session, "-e", ".[numeric]", *TESTING)
    session.run("pytest", "tests/core", "tests/backends", "tests/conformance", *session.posargs, env=QUIET)


@nox.session
def tests_autograd18(session: nox.Session) -> None:
    """The host with the oldest autograd that is supported."""
    install(session, "-e", ".[numeric,torch]", *TESTING, release="autograd==1.8.0")
    session.run("pytest", "tests/core", "tests/backends", "tests/conformance", *session.posargs, env=QUIET)


@nox.session
@nox.parametrize("framework", [nox.param(name, id=name) for name in ONLY])
def tests_only(session: nox.Session, framework: str) -> None:
    """Each backend in an environment with its framework alone."""
    install(session, "-e", f".[numeric,{framework}]", *TESTING, *ONLY[framework])
    session.run("pytest", "tests/core", "tests/backends", "tests/conformance", *session.posargs, env=QUIET)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff: rules and format."""
    install(session, "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def typecheck(session: nox.Session) -> None:
    """mypy, strict on core."""
    install(session, "-e", ".", "mypy", "pytest")
    session.run("mypy")


@nox.session
def bench(session: nox.Session) -> None:
    """Ratios to the native frameworks, measured in one run."""
    install(session, "-e", ".[all]", *MODULES, engine=True)
    session.run("python", "-m", "benchmarks", *session.posargs, env=QUIET)
