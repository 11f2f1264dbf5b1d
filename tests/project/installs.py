"""Finds instructions, for people or tools, to install one of our packages by name.

Installers look a name up on PyPI, where it may belong to another project or to nobody; paths, URLs and wheels are safe.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.project.repository import load_toml, source_files

DISTRIBUTIONS = sorted(
    load_toml(path)["project"]["name"] for path in source_files() if path.name == "pyproject.toml"
)


def name_pattern(distributions: Iterable[str]) -> str:
    """The names as PyPI reads them: in any case, with any run of ``-``, ``_`` and ``.`` between the words."""
    return "(?:" + "|".join(re.sub(r"[-_.]+", "[-_.]+", name) for name in distributions) + ")"


NAME = name_pattern(DISTRIBUTIONS)
NOT_IN_A_PATH = r"(?<![\w./\\-])"

# A word of a command that is one of our names: bare, or with extras, a version or a tag.
NAMED = re.compile(NAME + r"(?:\[[^\]]*\])?(?:(?:[=<>!~@;]|===).*)?", re.IGNORECASE)

OPTIONS = r"(?:\s+-[-\w]+(?:=\S+)?)*"
INSTALLS = [
    rf"\bpip[\d.]*(?:[._]\w+)*[\s(\[]+(?:-\S+\s+)*(?:install|download|wheel)\b{OPTIONS}",
    rf"\bpipx{OPTIONS}\s+(?:install|inject|upgrade|reinstall)\b{OPTIONS}",
    rf"\buv{OPTIONS}\s+(?:add|tool\s+(?:install|upgrade))\b{OPTIONS}",
    rf"\b(?:conda|mamba|micromamba|pixi|poetry|pdm|rye|pipenv|hatch){OPTIONS}\s+(?:\w+\s+)?(?:install|add|create)\b",
    r"\b(?:easy_install|pip-run)\b",
    r"\bsession\.install\(",
]
RUNS = rf"\b(?:pipx{OPTIONS}?\s+run|uvx|uv{OPTIONS}?\s+tool\s+run|uv{OPTIONS}?\s+run)\b"
COMMAND = re.compile(rf"(?P<install>{'|'.join(INSTALLS)})|(?P<run>{RUNS})", re.IGNORECASE)
END = re.compile(r"&&|\|\||[;|`\n]|(?<=\s)#|</")

WORDS_FOR_LISTS = (
    r"(?:\w+[-_])?(?:dependencies|deps|requires|requirements|require|dependency-groups|packages)"
)
LISTS = [
    re.compile(  # x = [...], x: {...}
        rf"\b{WORDS_FOR_LISTS}\b[\"']?\s*[:=]\s*"
        r"(?P<items>\[[^\]]*(?:\[[^\]]*\][^\]]*)*\]|\{[^}]*\}|\([^)]*\))",
        re.IGNORECASE,
    ),
    re.compile(  # setup.cfg, tox.ini: x = a, or a line each
        rf"^[ \t]*{WORDS_FOR_LISTS}[ \t]*[:=](?P<items>[^\n\[({{]*(?:\n[ \t]+[\w.\[\]<>=~!;, '\"-]+$)*)",
        re.IGNORECASE | re.MULTILINE,
    ),
    re.compile(  # a table of TOML
        rf"^\[+[^\]\n]*{WORDS_FOR_LISTS}[^\]\n]*\]+[ \t]*\n(?P<items>(?:(?!\[).*\n?)*)",
        re.IGNORECASE | re.MULTILINE,
    ),
]
REQUIREMENTS = [
    # with a version or an extra, anywhere
    re.compile(NOT_IN_A_PATH + NAME + r"(?:\[[\w\s,-]+\])?\s*(?:===?|[<>~!]=|[<>])\s*[\"']?\d", re.I),
    re.compile(NOT_IN_A_PATH + NAME + r"\[\w[\w\s,-]*\](?![(\w])", re.I),
    # an item of its own: requirements.txt, environment.yml, [tool.poetry.dependencies]
    re.compile(r"^(?:[ \t]*-[ \t]+)?[\"']?" + NAME + r"[\"']?,?[ \t]*(?:[;#].*)?$", re.I | re.M),
    re.compile(r"^[ \t]*[\"']?" + NAME + r"[\"']?[ \t]*=[ \t]*(?:[\"'][\^~<>=*\d]|\{)", re.I | re.M),
    re.compile(r"pypi\.org/(?:project|simple|pypi)/" + NAME, re.I),
]


def find_installs(text: str) -> list[str]:
    """The commands and requirements of `text` that name one of our packages."""
    text = re.sub(r"[\"']\s*\n\s*[furb]{0,2}(?=[\"'])[\"']", "", text)  # adjacent string literals
    text = re.sub(r"\\+n", "\n", text)  # the end of a line in a string
    text = re.sub(r"\\+\"", '"', text)
    found = list(named_in_commands(plain(text)))
    for match in (match for pattern in LISTS for match in pattern.finditer(text)):
        items = re.findall(r"[\"']\s*([^\"']+?)\s*[\"']|([\w./\\-]+(?:\[[^\]]*\])?)", match["items"])
        found += [item for pair in items for item in pair if NAMED.fullmatch(item)]
    for pattern in REQUIREMENTS:
        found += [match[0].strip() for match in pattern.finditer(text)]
    return found


def plain(text: str) -> str:
    """A command as it is typed: without quotes, commas between arguments and newlines inside it."""
    text = re.sub(r"\\\r?\n|\^\r?\n", " ", text)
    text = re.sub(r",\s*\n\s*(?=[\"'*])", " ", text)  # a list with an item on each line
    text = re.sub(r"\*\*|</?[bi]>|[\u201c\u201d\u2018\u2019]", " ", text)
    return re.sub(r"[\"',]", " ", text)


def named_in_commands(text: str) -> Iterator[str]:
    """The commands that install or fetch one of our packages by its name, with the name."""
    for match in COMMAND.finditer(text):
        rest = text[match.end() :].lstrip()  # also where prose breaks the line inside a command
        if rest.startswith("`"):  # the name in a literal of its own
            rest = re.split(r"[\s`]+", rest.lstrip("` \n"), maxsplit=1)[0]
        end = END.search(rest)
        words = [
            word.strip("()[]{}<>.:!?") if "[" not in word else word
            for word in rest[: end and end.start()].split()
        ]
        if match["run"] is not None:
            words = fetched_by_a_run(words, by_name="uv run" not in " ".join(match["run"].split()))
        for word, after in zip(words, [*words[1:], ""]):
            if after != "@" and NAMED.fullmatch(word.rstrip(".,:)")) and not re.search(r"@\s*\w+[:+]", word):
                yield f"{match[0].strip()} {word}"


def fetched_by_a_run(words: list[str], by_name: bool) -> list[str]:
    """What `pipx run` and `uvx` fetch: the value of --spec, --from and --with, else the command itself."""
    fetched = []
    named = None
    spec = False
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    rest = iter(words)
    for word in rest:
        if word in ("--spec", "--from", "--with", "--with-editable"):
            fetched.append(next(rest, ""))
            spec = spec or word in ("--spec", "--from")
        elif word in ("--python", "-p", "--index-url", "--pip-args"):
            next(rest, "")
        elif not word.startswith("-"):
            named = word
            break
    if by_name and not spec and named is not None:
        fetched.append(named)
    return fetched


def find_in_file(path: Path) -> list[str]:
    """What was found in a file; nothing if it is not text."""
    data = path.read_bytes()
    return [] if b"\0" in data else find_installs(data.decode("utf-8", "replace"))
