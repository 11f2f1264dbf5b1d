"""The command line."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NoReturn

from . import __version__, streams
from .documents.result import Result
from .engine import may_hold_use
from .runner import Watch, migrate_hits, read_files, write_all
from .settings import Settings, UsageError, load, suggestion

WORTH_A_BAR = 8  # files with a use; fewer are done too quickly for a progress bar
SKIPPED = "skipped, although it contains an __init__.py: name it on the command line to search it"
FORMATS = ("text", "json", "sarif", "github")


def integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be integers such as 1,2,4,8, got {text!r}") from None


def identifiers(text: str) -> tuple[str, ...]:
    return tuple(part.strip().upper() for part in text.split(",") if part.strip())


class Stopped(KeyboardInterrupt):
    """A signal that asks this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Parser(argparse.ArgumentParser):
    """A parser that suggests the closest word for an unknown one."""

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"invalid choice: '([^']*)'|unrecognized arguments: (\S+)", message)
        if unknown is not None:
            word = unknown.group(1) or (unknown.group(2) or "").split("=")[0]
            options = [text for action in self._actions for text in action.option_strings]
            options += [f"--output-format {name}" for name in FORMATS]
            if word.removeprefix("--") in FORMATS:
                word = f"--output-format {word.removeprefix('--')}"
            message += suggestion(word, FORMATS if unknown.group(1) else options)
        super().error(message)


class HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=100)  # a given width saves importing a slow module for every option


# Of options that the settings may give.
SUPPRESSED: dict[str, Any] = {"default": argparse.SUPPRESS}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="migrate-hierarchical",
        allow_abbrev=False,  # --out=json would otherwise be --output-format, and the run would write
        formatter_class=HelpFormatter,
        description="Rewrite every use of the hierarchical attention that dilated-attention-pytorch removed.",
        epilog="Exit status: 0 nothing left to do, 1 --check or --diff would change something, "
        "2 bad usage, a file that could not be read, parsed or written, or uses that need a person. "
        "A comment `# noqa: HIER1xx` on the line of a use, or --ignore HIER1xx, silences its report for good: "
        "no TODO line, no entry, no exit status 2. In Python and notebooks a bare `# noqa` does too. "
        "A file that contains `migrate-hierarchical: skip-file` is left unchanged.",
    )
    parser.add_argument(
        "paths", nargs="*", metavar="PATH", help="files and folders; - reads stdin and writes stdout"
    )
    parser.add_argument("--diff", action="store_true", help="print a unified diff, write nothing")
    parser.add_argument(
        "--check",
        action="store_true",
        help="list the files that would change, write nothing; --diff lists them too",
    )
    add_code_options(parser)
    add_file_options(parser)
    add_report_options(parser)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def add_code_options(parser: argparse.ArgumentParser) -> None:
    new = parser.add_argument_group("new code")
    new.add_argument(
        "--sparsity-ratio",
        type=float,
        metavar="R",
        help="fraction of the blocks that new patterns keep (0.01)",
        **SUPPRESSED,
    )
    new.add_argument(
        "--dilation-rates",
        type=integers,
        metavar="N,N",
        help="dilation rates of new patterns, in blocks (1,2,4,8)",
        **SUPPRESSED,
    )
    new.add_argument(
        "--line-length",
        type=int,
        metavar="N",
        help="maximum length of a TODO line (that of ruff or black in the project's settings)",
        **SUPPRESSED,
    )
    new.add_argument(
        "--explain", action="store_true", help="add comments that explain ratio and rates", **SUPPRESSED
    )


def add_file_options(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("files and rules")
    files.add_argument(
        "--include",
        action="append",
        metavar="GLOB",
        help="search only these files in folders; may be repeated",
        **SUPPRESSED,
    )
    files.add_argument(
        "--exclude",
        action="append",
        metavar="GLOB",
        help="skip these files and folders; may be repeated",
        **SUPPRESSED,
    )
    files.add_argument(
        "--select",
        type=identifiers,
        metavar="ID,ID",
        help="use only these rules and reports; HIER1xx means all that begin with HIER1; UP is for other code for 0.2.0 "
        "and runs only if it is named (HIER)",
        **SUPPRESSED,
    )
    files.add_argument(
        "--ignore", type=identifiers, metavar="ID,ID", help="leave out these rules and reports", **SUPPRESSED
    )
    files.add_argument("--list-rules", action="store_true", help="print every rule and reason, then stop")
    files.add_argument(
        "--stdin-filename", metavar="PATH", default="stdin.py", help="file name for - (stdin.py)"
    )


def add_report_options(parser: argparse.ArgumentParser) -> None:
    out = parser.add_argument_group("report")
    out.add_argument("--output-format", choices=FORMATS, default="text")
    out.add_argument(
        "--report", metavar="FILE", help="write the report to a file, in JSON unless a format is given"
    )
    out.add_argument(
        "--seq-len",
        type=int,
        metavar="N",
        help="number of tokens at which old and new patterns are compared (16384)",
        **SUPPRESSED,
    )
    out.add_argument(
        "--jobs", type=int, metavar="N", help="number of processes (0: one per core)", **SUPPRESSED
    )
    out.add_argument(
        "--time-limit",
        type=float,
        metavar="S",
        help="seconds of CPU time after which a file is left unchanged and reported (15; 0: no limit)",
        **SUPPRESSED,
    )


def print_rules() -> None:
    from .report import summaries

    streams.write("".join(f"{rule}  {text}\n" for rule, text in summaries().items()))


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    streams.prepare()
    try:
        with stopped_by_signals():
            status = run(arguments)
            streams.write("")  # flushes what argparse has printed
            return status
    except KeyboardInterrupt as stop:
        streams.complain("interrupted; every file is whole, old or new")
        return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)
    except BrokenPipeError:
        return 2
    except streams.StreamError as error:
        streams.complain(str(error))
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        streams.complain(f"{name}{error.strerror or error}")
    except Exception as error:
        where = f"{place_of(error)}: {type(error).__name__}: {error!s:.200}"
        streams.complain(f"error of this tool, please report it: {where}")
    return 2


def place_of(error: BaseException) -> str:
    """File and line of the code that raised an error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}" if trace else "?"


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Make terminating signals raise, so that temporary files and worker processes are cleaned up first."""
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [getattr(signal, name) for name in names]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    old = {number: signal.getsignal(number) for number in numbers}
    old = {number: handler for number, handler in old.items() if handler is not signal.SIG_IGN}

    stopped: list[int] = []

    def stop(number: int, frame: object) -> NoReturn:
        for each in old:
            signal.signal(each, signal.SIG_IGN)  # one signal is enough
        stopped.append(number)
        raise Stopped(number)

    def stop_again(number: int, frame: object) -> NoReturn:
        raise Stopped(stopped[0])

    def unraisable(found: sys.UnraisableHookArgs) -> None:
        """An exception in a destructor while the process ends: no message; if a signal raised it, raise it again."""
        if not stopped:
            hook(found)
        elif isinstance(found.exc_value, Stopped) and hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, stop_again)
            signal.setitimer(signal.ITIMER_REAL, 0.01)

    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    try:
        for number in old:
            signal.signal(number, stop)
        yield
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in old.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


def run(arguments: list[str] | None) -> int:
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
        "time_limit",
        "line_length",
    )
    given = {name: getattr(options, name) for name in names if hasattr(options, name)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    try:
        if not options.paths:
            raise UsageError("PATH is missing: name files or folders, or - for stdin")
        if "-" in options.paths and len(options.paths) > 1:
            raise UsageError("- cannot be combined with other paths")
        settings = load(options.paths, given).check()
        if settings.select or settings.ignore:
            from .report import summaries

            settings = settings.with_ids(list(summaries()))
        check_report(options.report)
    except UsageError as error:
        streams.complain(str(error))
        return 2
    return run_stdin(options, settings) if options.paths == ["-"] else run_paths(options, settings)


def check_report(path: str | None) -> None:
    """Check, before anything is changed, that the report can be written; raises UsageError."""
    if path is None:
        return
    folder = os.path.dirname(path) or os.curdir
    if not os.path.isdir(folder):
        raise UsageError(
            f"--report {path}: the report cannot be written: there is no folder {folder}; make it first"
        )
    if os.path.isdir(path):
        raise UsageError(
            f"--report {path}: the report cannot be written: this is a folder; name a file in it"
        )


# ---- stdin


def run_stdin(options: argparse.Namespace, settings: Settings) -> int:
    from .report import Run

    data = streams.read_stdin()
    path = options.stdin_filename
    run = Run([], 1, wrote=not (options.check or options.diff), seq_len=settings.seq_len)
    run.groups = settings.groups
    options.paths = [path]
    hits = [(path, data)] if may_hold_use(path, data, settings.groups) else []
    run.results, run.notes = migrate_hits([path], [path], hits, settings, progress(options), {path: data})
    result = run.results[0] if run.results else Result(path)
    if options.diff:
        write_diff(result)
    elif not options.check:
        streams.write(data if result.new is None else result.new)
    finish(run, options, to_stderr=True)
    return run.status


# ---- files


def run_paths(options: argparse.Namespace, settings: Settings) -> int:
    from .discovery import find_files
    from .report import Run

    found = find_files(options.paths, settings)
    run = Run([], len(found.files), list(found.errors), not (options.check or options.diff), settings.seq_len)
    run.groups = settings.groups
    run.notes += [(folder, SKIPPED) for folder in found.skipped]
    read = read_files(found.files, found.scripts, settings)
    run.errors += read.errors
    run.notes += read.notes
    run.results += read.results
    settings = replace(settings, uses_package=read.uses_package)
    results, notes = migrate_hits(
        options.paths, found.files, read.hits, settings, progress(options), hands_on=read.hands_on
    )
    run.notes += notes
    if run.wrote:
        write_all(results)
    for result in results:
        run.results.append(result)
        if options.diff:
            write_diff(result)
    finish(run, options, to_stderr=options.diff)
    return run.status


def progress(options: argparse.Namespace) -> Watch:
    """A progress bar on a terminal; nothing elsewhere."""

    def watch(results: Iterator[Result], total: int) -> Iterable[Result]:
        if total < WORTH_A_BAR or options.diff or sys.stderr is None or not sys.stderr.isatty():
            return results
        from rich.console import Console
        from rich.progress import track

        return track(results, "migrating", total, console=Console(stderr=True), transient=True)

    return watch


# ---- output


def write_diff(result: Result) -> None:
    """Write a unified diff for `patch -p1`, in the bytes of the file."""
    if result.new is None:
        return
    from .lines import unified_diff

    name = os.fsencode(os.path.normpath(result.path).lstrip(os.sep))
    streams.write(unified_diff(result.old, result.new, name))


def finish(run: Any, options: argparse.Namespace, to_stderr: bool) -> None:
    from . import report

    text = report.FORMATS[options.output_format](run)
    if options.report:
        format_ = "json" if options.output_format == "text" else options.output_format
        try:
            with open(options.report, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(report.FORMATS[format_](run))
        except OSError as error:
            why = f"the report cannot be written: {error.strerror or error}"
            streams.complain(f"{options.report}: {why}")
            run.errors.append((options.report, why))
            text = report.FORMATS[options.output_format](run)
        else:
            streams.complain(f"wrote the report ({format_}) to {options.report}; {report.summary(run)}")
        if options.output_format != "text":
            return
    elif options.output_format == "sarif" and run.wrote and run.changed and not to_stderr:
        streams.complain(report.summary(run))
    streams.write(text, to_stderr)
