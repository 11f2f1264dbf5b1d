"""The command line."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from . import __version__
from .documents.result import Result
from .engine import may_hand_on, may_hold_use, migrate_bytes, names_package, read_file
from .facts import Facts
from .settings import Settings, UsageError, load

WORTH_WORKERS = 8  # files with a use; below it, starting processes takes longer than the work
FORK = "defines the removed names itself, so it is their home and left as it is"
FORMATS = ("text", "json", "sarif", "github")


def integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be integers such as 1,2,4,8, got {text!r}") from None


def identifiers(text: str) -> tuple[str, ...]:
    return tuple(part.strip().upper() for part in text.split(",") if part.strip())


class HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=100)  # asking the terminal imports a slow module for every option


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="migrate-hierarchical",
        formatter_class=HelpFormatter,
        description="Rewrite every use of the hierarchical attention that dilated-attention-pytorch removed.",
        epilog="Exit status: 0 nothing left to do, 1 --check or --diff would change something, "
        "2 bad usage, a file that could not be read, parsed or written, or uses that need a person.",
    )
    parser.add_argument(
        "paths", nargs="*", metavar="PATH", help="files and folders; - reads stdin and writes stdout"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--diff", action="store_true", help="print a unified diff, write nothing")
    mode.add_argument("--check", action="store_true", help="name the files that would change, write nothing")
    suppressed: dict[str, Any] = {"default": argparse.SUPPRESS}
    new = parser.add_argument_group("new code")
    new.add_argument(
        "--sparsity-ratio",
        type=float,
        metavar="R",
        help="share of blocks that new patterns keep (0.01)",
        **suppressed,
    )
    new.add_argument(
        "--dilation-rates",
        type=integers,
        metavar="N,N",
        help="their rates, in blocks (1,2,4,8)",
        **suppressed,
    )
    new.add_argument("--explain", action="store_true", help="write beside both what they mean", **suppressed)
    files = parser.add_argument_group("files and rules")
    files.add_argument(
        "--include",
        action="append",
        metavar="GLOB",
        help="only these files of a folder; may be repeated",
        **suppressed,
    )
    files.add_argument(
        "--exclude", action="append", metavar="GLOB", help="leave these out; may be repeated", **suppressed
    )
    files.add_argument("--select", type=identifiers, metavar="ID,ID", help="only these rules", **suppressed)
    files.add_argument("--ignore", type=identifiers, metavar="ID,ID", help="not these rules", **suppressed)
    files.add_argument("--list-rules", action="store_true", help="print every rule and reason, then stop")
    files.add_argument(
        "--stdin-filename", metavar="PATH", default="stdin.py", help="what - is called (stdin.py)"
    )
    out = parser.add_argument_group("report")
    out.add_argument("--output-format", choices=FORMATS, default="text")
    out.add_argument(
        "--report", metavar="FILE", help="write the report to a file, in JSON unless a format is given"
    )
    out.add_argument(
        "--seq-len",
        type=int,
        metavar="N",
        help="tokens at which old and new patterns are compared (16384)",
        **suppressed,
    )
    out.add_argument("--jobs", type=int, metavar="N", help="processes (0: one per core)", **suppressed)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def print_rules() -> None:
    from .rules import RULES
    from .rules.reasons import REASONS

    for rule in RULES:
        print(f"{rule.id}  {rule.summary}")
    for reason, text in REASONS.items():
        print(f"{reason}  {text}")


def rule_ids() -> frozenset[str]:
    return frozenset(f"HIER{number:03}" for number in range(1, 10))


def main(arguments: list[str] | None = None) -> int:
    """Run; the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may hold anything
    parser = build_parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    if options.list_rules:
        print_rules()
        return 0
    names = (
        "sparsity_ratio",
        "dilation_rates",
        "explain",
        "select",
        "ignore",
        "include",
        "exclude",
        "seq_len",
        "jobs",
    )
    given = {name: getattr(options, name) for name in names if hasattr(options, name)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    try:
        if not options.paths:
            raise UsageError("PATH is missing: name files or folders, or - for stdin")
        if "-" in options.paths and len(options.paths) > 1:
            raise UsageError("- cannot be combined with other paths")
        settings = load(options.paths, given).check(rule_ids())
    except UsageError as error:
        print(f"migrate-hierarchical: {error}", file=sys.stderr)
        return 2
    try:
        if options.paths == ["-"]:
            return run_stdin(options, settings)
        return run_paths(options, settings)
    except KeyboardInterrupt:
        print("migrate-hierarchical: interrupted; every file is whole, old or new", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2


# ---- stdin


def run_stdin(options: argparse.Namespace, settings: Settings) -> int:
    from .report import Run

    data = sys.stdin.buffer.read()
    path = options.stdin_filename
    run = Run([], 1, wrote=not (options.check or options.diff), seq_len=settings.seq_len)
    options.paths = [path]
    hits = [(path, data)] if may_hold_use(path, data) else []
    run.results += migrate_hits([path], hits, run, options, settings, {path: data})
    result = run.results[0] if run.results else Result(path)
    if options.diff:
        write_diff(result)
    elif not options.check:
        write_bytes(data if result.new is None else result.new)
    finish(run, options, to_stderr=True)
    return run.status


# ---- files


def run_paths(options: argparse.Namespace, settings: Settings) -> int:
    from .discovery import find_files
    from .report import Run

    found = find_files(options.paths, settings)
    run = Run([], len(found.files), list(found.errors), not (options.check or options.diff), settings.seq_len)
    hits: list[tuple[str, bytes]] = []
    uses_package = False
    hands_on = False  # whether a file without a use may give names of the package to another one
    for path in found.files:
        try:
            data = read_file(path)
        except OSError as error:
            run.errors.append((path, error.strerror or str(error)))
            continue
        uses_package = uses_package or names_package(path, data)
        if may_hold_use(path, data):
            hits.append((path, data))
        elif not hands_on and may_hand_on(path, data):
            hands_on = True
    settings = replace(settings, uses_package=uses_package)
    for result in migrate_hits(found.files, hits, run, options, settings, hands_on=hands_on):
        if run.wrote and result.new is not None:
            write(result)
        run.results.append(result)
        if options.diff:
            write_diff(result)
    finish(run, options, to_stderr=options.diff)
    return run.status


def migrate_hits(
    files: list[str],
    hits: list[tuple[str, bytes]],
    run: Any,
    options: argparse.Namespace,
    settings: Settings,
    contents: dict[str, bytes] | None = None,
    hands_on: bool = False,
) -> list[Result]:
    """The results of the files with a use, and of those that take names from them."""
    from .project import project_roots

    if (
        not hits
        and not hands_on
        and set(project_roots(options.paths)) <= set(map(os.path.abspath, options.paths))
    ):
        return []  # no file of the project names the package, so none hands its names on
    from .rounds import migrate_project

    def migrate(some: list[tuple[str, bytes]], facts: dict[str, Facts]) -> Iterable[Result]:
        return with_progress(migrate_all(some, settings, facts), len(some), options)

    results, forks = migrate_project(options.paths, files, hits, contents or dict(hits), settings, migrate)
    run.notes += [(folder, FORK) for folder in forks]
    return results


def write(result: Result) -> None:
    from .writing import write_atomically

    assert result.new is not None
    try:
        if read_file(result.path) != result.old:
            raise OSError("it changed while this ran; run again")
        write_atomically(result.path, result.new)
    except OSError as error:
        result.error, result.new = f"cannot be written: {error.strerror or error}", None


def migrate_one(hit: tuple[str, bytes, Settings]) -> Result:
    path, data, settings = hit
    return migrate_bytes(path, data, settings)


def migrate_all(
    hits: list[tuple[str, bytes]], settings: Settings, facts: dict[str, Facts]
) -> Iterator[Result]:
    """Results in the order of the files; in several processes where that is faster."""
    tasks = [(path, data, replace(settings, facts=facts[path])) for path, data in hits]
    jobs = min(settings.jobs or available_cores(), len(tasks))
    if jobs < 2 or len(tasks) <= WORTH_WORKERS:
        yield from map(migrate_one, tasks)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    from .documents import python  # noqa: F401  # before the fork: the processes share it

    method = "fork" if sys.platform == "linux" else None
    with ProcessPoolExecutor(jobs, multiprocessing.get_context(method)) as pool:
        yield from pool.map(migrate_one, tasks, chunksize=max(1, min(8, len(tasks) // (4 * jobs))))


def available_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def with_progress(results: Iterable[Result], total: int, options: argparse.Namespace) -> Iterator[Result]:
    """A progress bar on a terminal; nothing elsewhere."""
    if total < WORTH_WORKERS or not sys.stderr.isatty() or options.diff:
        yield from results
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(results, "migrating", total, console=Console(stderr=True), transient=True)


# ---- output


def write_diff(result: Result) -> None:
    """A unified diff that `patch -p1` takes, in the bytes of the file."""
    if result.new is None:
        return
    import difflib

    old, new = (data.splitlines(keepends=True) for data in (result.old, result.new))
    name = os.fsencode(os.path.normpath(result.path).lstrip(os.sep))
    lines = difflib.diff_bytes(difflib.unified_diff, old, new, b"a/" + name, b"b/" + name)
    text = b"".join(
        line if line.endswith(b"\n") else line + b"\n\\ No newline at end of file\n" for line in lines
    )
    write_bytes(text)


def write_bytes(data: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def finish(run: Any, options: argparse.Namespace, to_stderr: bool) -> None:
    from . import report

    text = report.FORMATS[options.output_format](run)
    stream = sys.stderr if to_stderr else sys.stdout
    if options.report:
        format_ = "json" if options.output_format == "text" else options.output_format
        try:
            with open(options.report, "w", encoding="utf-8") as file:
                file.write(report.FORMATS[format_](run))
        except OSError as error:
            run.errors.append((options.report, f"the report cannot be written: {error.strerror or error}"))
            text = report.FORMATS[options.output_format](run)
        if options.output_format != "text":
            return
    stream.write(text)
