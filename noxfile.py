"""The checks of the repository: `nox` runs the default ones, `nox -l` explains each in a line.

Every session installs what it needs. The sessions that need torch share one environment, `.nox/shared_env`,
because torch is large; `wheels` has its own, with nothing in it but the built wheels and their dependencies.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml("pyproject.toml")
CONSTRAINTS = ("-c", str(ROOT / "constraints.txt"))
CORE = "packages/dilated-attention-pytorch"
CODEMOD = "tools/migrate-hierarchical"
BENCH = "tools/attention-bench"
PACKAGES = (CORE, CODEMOD, BENCH)
QUICK = "not gpu and not processes"  # these have sessions of their own
TRITONS = ("3.6.0", "3.7.1", "3.8.0", "3.9.0")  # releases that the Hopper kernels support, the newest last
# What is imported is compiled then, once; pip would compile all of torch and its like.
INSTALL = ("install", "--quiet", "--no-compile")
INSTALLED: set[str] = set()  # what this run of nox has installed in the shared environment
# Where a container forbids bytecode, each of the hundreds of processes of the tests would compile torch anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Default sessions: what the README's test command runs, in this order.


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff reports nothing, and the code is formatted."""
    session.install(*CONSTRAINTS, *group("lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check", *session.posargs)


@nox.session
def versions(session: nox.Session) -> None:
    """The repository itself: one version everywhere, the README's commands, import rules, no dead paths."""
    session.install(*CONSTRAINTS, *group("project"))
    session.run("pytest", "tests/project", *session.posargs)


@nox.session(venv_backend="none")
def typecheck(session: nox.Session) -> None:
    """mypy, strict, on every package."""
    python = shared_env(session, "typecheck")
    session.run(python, "-m", "mypy", *session.posargs)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Core package, quick tests of integrations, benchmark tool, on the CPU; GPU kernels in the newest Triton's interpreter."""
    python = shared_env(session, "test", "integrations")
    run_core_tests(session, python, "tests/bench", "-m", QUICK, env=with_triton(session, python, TRITONS[-1]))
    run_integrations(session, python, "-m", "not slow")


@nox.session(venv_backend="none")
def codemod(session: nox.Session) -> None:
    """The codemod's tests; code that it writes runs against the core package."""
    python = shared_env(session, "codemod")
    session.run(python, "-m", "pytest", "tests/codemod", *workers(), *session.posargs)


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """The site builds without a warning, and every Python example of the docs and READMEs runs."""
    python = shared_env(session, "docs")
    session.run(python, "docs/_generate")
    session.run(
        # not --quiet, which would silence the warnings that --strict counts
        *(python, "-m", "mkdocs", "build", "--strict", "--site-dir", "site"),
        env={"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"},
    )
    one_thread = {"OMP_NUM_THREADS": "1"}  # for each worker
    session.run(python, "-m", "pytest", "tests/docs", *workers(), *session.posargs, env=one_thread)


@nox.session(default=False, venv_backend="none")
def docs_browser(session: nox.Session) -> None:
    """The built site in a real browser (needs Chromium): accessibility, search, explorer, no outside requests."""
    docs(session)
    python = shared_env(session, "docs_browser")
    session.run(python, "-m", "pytest", "tests/browser", *workers(), *session.posargs)


@nox.session(default=False, venv_backend="none")
def docs_zensical(session: nox.Session) -> None:
    """Build the site with Zensical from the same mkdocs.yml, and run the tests of the site on it."""
    python = shared_env(session, "docs_zensical")
    session.run(python, "docs/_generate")
    built = {"SITE_DIR": ".nox/site-zensical"}
    session.run(python, "-m", "zensical", "--version")
    session.run(python, "-m", "zensical", "build", "--clean", "--strict", env=built)
    session.run(python, "-m", "pytest", "tests/docs/test_site.py", *session.posargs, env=built)


@nox.session
def wheels(session: nox.Session) -> None:
    """Build all wheels, install them in a clean environment, and use them from outside the repository."""
    dist = Path(session.create_tmp()) / "wheels"
    shutil.rmtree(dist, ignore_errors=True)
    packages = [f"./{package}" for package in PACKAGES]
    session.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(dist), *packages)
    built = sorted(str(wheel) for wheel in dist.glob("*.whl"))
    session.install("--no-compile", *CONSTRAINTS, *built)
    session.install("--force-reinstall", "--no-deps", *built)
    with tempfile.TemporaryDirectory() as elsewhere, session.chdir(elsewhere):
        session.run("python", "-I", str(ROOT / "tests/project/smoke.py"))
        session.run("migrate-hierarchical", "--help", silent=True)
        session.run("python", "-m", "migrate_hierarchical", "--list-rules", silent=True)
        session.run("attention-bench", "--help", silent=True)


# Opt-in sessions: nox -s NAME.


@nox.session(default=False, venv_backend="none")
def demo(session: nox.Session) -> None:
    """Compare four attentions in a small language model: `nox -s demo -- FILE ...`."""
    python = shared_env(session)
    session.run(python, "-m", "dilated_attention_pytorch", "demo", *session.posargs)


@nox.session(default=False, venv_backend="none")
def integrations(session: nox.Session) -> None:
    """Models of transformers and diffusers, also those tests that take long."""
    run_integrations(session, shared_env(session, "integrations"))


@nox.session(default=False, venv_backend="none")
def gpu(session: nox.Session) -> None:
    """The tests that need a CUDA device, one after the other."""
    python = shared_env(session, "test", "integrations")
    chosen = ("tests/core", "tests/integrations", "-m", "gpu and not processes", *session.posargs)
    session.run(python, "-m", "pytest", *chosen)


@nox.session(default=False, venv_backend="none")
def distributed(session: nox.Session) -> None:
    """The tests that start up to 8 processes: gloo on the CPU, and NCCL where there are as many GPUs."""
    python = shared_env(session, "test")
    # not in parallel: each test has processes of its own, and time limits
    session.run(
        *(python, "-m", "pytest", "tests/core", "tests/bench", "-m", "processes", *session.posargs),
        env={"OMP_NUM_THREADS": "1"},
    )


@nox.session(default=False, venv_backend="none")
def sanitize(session: nox.Session) -> None:
    """compute-sanitizer (of the CUDA toolkit) on one small call of every Hopper kernel; needs an H100 or H200."""
    python = shared_env(session, "test")
    memcheck = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "2"]
    session.run(*memcheck, python, "tools/kernel-checks/sanitize_hopper.py", *session.posargs, external=True)
    session.run(python, "tools/kernel-checks/racecheck.py", *session.posargs)


@nox.session(default=False, venv_backend="none")
def bench(session: nox.Session) -> None:
    """Time the library beside its peers: `nox -s bench -- --help`."""
    python = shared_env(session, "bench")
    session.run(python, "-m", "attention_bench", *session.posargs)


@nox.session(default=False, python=["3.10", "3.11", "3.12", "3.13"])
def codemod_pythons(session: nox.Session) -> None:
    """The codemod on each Python that is installed, without torch."""
    session.install(*CONSTRAINTS, *group("codemod"), "-e", CODEMOD)
    session.run("pytest", "tests/codemod", *workers(), *session.posargs)


@nox.session(default=False, venv_backend="none")
@nox.parametrize("version", TRITONS)
def triton(session: nox.Session, version: str) -> None:
    """Compile every GPU kernel in every shape with this Triton, without a GPU; registers, spills and launch arguments."""
    python = shared_env(session, "test")
    tests = [
        f"tests/core/{name}.py"
        for name in (
            "backends/hopper/test_offline_compile",
            "backends/triton/test_offline_compile",
            "backends/triton/test_decode_offline_compile",
            "backends/hopper/test_launch",
            "layout/test_offline_compile",
        )
    ]
    session.run(
        *(python, "-m", "pytest", *tests, *workers(), *session.posargs),
        env={"EVERY_SHAPE": "1", **with_triton(session, python, version)},
    )


@nox.session(default=False, venv_backend="none")
def emulator(session: nox.Session) -> None:
    """The Hopper kernels, emulated on the CPU: every short case of the GPU's tests, forward and backward."""
    python = shared_env(session, "test")
    tests = [f"tests/core/backends/hopper/test_emulated_{name}.py" for name in ("kernels", "calls")]
    session.run(
        *(python, "-m", "pytest", *tests, *workers(), *session.posargs),
        env={"EVERY_SHAPE": "1", "OMP_NUM_THREADS": "1", **with_triton(session, python, TRITONS[-1])},
    )


@nox.session(default=False)
def minimums(session: nox.Session) -> None:
    """The core package with the oldest torch and triton that it allows."""
    # newer ones break the interpreter of Triton before 3.7
    session.install(*group("test"), "numpy<2.4", "-e", f"{CORE}[demo]", *oldest_dependencies())
    run_core_tests(session, "python", "-m", QUICK)


@nox.session(default=False)
def codemod_minimums(session: nox.Session) -> None:
    """The codemod with the oldest libcst that it allows, without torch."""
    session.install(*group("codemod"), "-e", CODEMOD, *oldest_dependencies(CODEMOD, "libcst"))
    session.run("pytest", "tests/codemod", *workers(), *session.posargs)


@nox.session(default=False)
def newest(session: nox.Session) -> None:
    """The core package with the newest torch and triton that pip finds together."""
    session.install("--upgrade", "--upgrade-strategy", "eager", *group("test"), "-e", f"{CORE}[demo]")
    session.run("python", "-m", "pip", "list", silent=False)
    run_core_tests(session, "python", "-m", QUICK)


@nox.session(default=False)
def release(session: nox.Session) -> None:
    """Build and check the files of a release, then print the last step instead of doing it."""
    session.install(*group("release"), "-c", "constraints.txt")
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    for package in PACKAGES:
        session.run("python", "-m", "build", "--outdir", str(dist), package)
    files = sorted(str(path.relative_to(ROOT)) for path in dist.iterdir())
    session.run("twine", "check", "--strict", *files)
    version = nox.project.load_toml(f"{CORE}/pyproject.toml")["project"]["version"]
    session.log("Everything is ready. The last step is yours, after a full `nox` and `nox -s gpu`:")
    session.log(f"    git tag v{version} && git push origin v{version}")
    session.log(f"then attach these files to the release of that tag: {' '.join(files)}")
    session.log(
        "Upload nothing to PyPI: the library's name there belongs to another project, the other two names are free."
    )
    session.log("docs/release.md says what has to be settled first.")


# Shared by the sessions.


def group(*names: str) -> list[str]:
    """The requirements in these dependency groups of pyproject.toml."""
    return list(nox.project.dependency_groups(PYPROJECT, *names))


def shared_env(session: nox.Session, *groups: str) -> str:
    """Install all packages (editable) and `groups` into the shared environment; return its Python."""
    folder = ROOT / ".nox" / "shared_env"
    python = str(folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python"))
    if not Path(python).exists():
        session.run(sys.executable, "-m", "virtualenv", "--quiet", str(folder))
    editable = [f"--editable=./{package}" for package in (f"{CORE}[demo]", CODEMOD, BENCH)]
    missing = [wanted for wanted in (*editable, *group(*groups)) if wanted not in INSTALLED]
    if missing:
        session.run(python, "-m", "pip", *INSTALL, *CONSTRAINTS, *missing)
        INSTALLED.update(missing)
    return python


def workers() -> list[str]:
    """One pytest worker per core, eight at most."""
    # an idle worker takes tests from one that is compiling kernels
    return ["-n", "auto", "--maxprocesses", "8", "--dist", "worksteal"]


def with_triton(session: nox.Session, python: str, version: str) -> dict[str, str]:
    """Environment variables that put this Triton before the one in the shared environment, which torch pins."""
    if sys.platform != "linux":
        return {}
    folder = ROOT / ".nox" / "triton" / version
    if not (folder / f"triton-{version}.dist-info").exists():
        shutil.rmtree(folder, ignore_errors=True)
        install = (python, "-m", "pip", *INSTALL, "--no-deps", "--target", str(folder))
        session.run(*install, f"triton=={version}")
    return {"PYTHONPATH": str(folder)}


def run_core_tests(
    session: nox.Session, python: str, *selection: str, env: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Run the core's tests with one thread per worker, so that the workers do not fight over the cores."""
    chosen = ("tests/core", "tests/kernel_checks", *selection, *session.posargs)
    session.run(
        *(python, "-m", "pytest", *workers(), *chosen),
        env={"OMP_NUM_THREADS": "1", **env},
    )


def run_integrations(session: nox.Session, python: str, *selection: str) -> None:
    """Run the tests in models of other libraries, with one thread per worker and without a network."""
    # 5 is no test: arguments may be for other tests, and the libraries need Python 3.11
    may_be_none = session.posargs or sys.version_info < (3, 11)
    session.run(
        *(python, "-m", "pytest", *workers(), "tests/integrations", *selection, *session.posargs),
        env={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        success_codes=[0, 5] if may_be_none else [0],
    )


def oldest_dependencies(package: str = CORE, only: str = "") -> list[str]:
    """The lower bounds of a package's dependencies as exact versions; with `only`, of that dependency alone."""
    wanted = nox.project.load_toml(f"{package}/pyproject.toml")["project"]["dependencies"]
    wanted = [requirement for requirement in wanted if requirement.startswith(only)]
    return [re.sub(r">=\s*([\d.]+)", r"==\1.*", requirement) for requirement in wanted]
