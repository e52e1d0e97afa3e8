"""What the pages print: their commands, files, Python and overrides, and who runs which."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from lzsweep.commands import NAMES
from tests.go.engine import PROJECT

README = PROJECT / "README.md"
_LINKS = re.findall(r"\]\((docs/\w+\.md)\)", README.read_text().partition("\n## More\n")[2])
PAGES = (README, *(PROJECT / link for link in _LINKS))
"""In the order in which a reader comes to them: as the README's last links say."""
PROGRAMS = (
    "lzsweep", ".venv/bin/lzsweep", "make", "export", "sbatch", "srun", "scontrol", "scancel",
    "pip", "mlflow", "ssh", "apt-get", "curl", "git", "leelaz", "python", "source",
)  # fmt: skip
"""What a command begins with; anything else in an indented block is no command, and refused."""

EXCEPTED = {
    "make bench-data": "measures for minutes; tests/test_benchmarks.py runs its parts",
    "make bench-sweep": "measures for half an hour; tests/test_benchmarks.py runs its parts",
    "make test": "runs this test; the project's check calls it",
    "make lint types": "the project's check calls it",
    "make test-fast": "runs tests of this suite",
    "make test-cluster": "runs tests of this suite",
    "pip install 'lzsweep[server]'": "from a package index; the extra is looked for instead",
    "ssh -L 5000:127.0.0.1:5000 HOST": "takes a second machine",
    "mlflow server": "names MLflow's own command, which is compared with",
    "lzsweep -m": "names a form, `lzsweep -m WORDS`",
    "lzsweep -m ...": "names a form, `lzsweep -m WORDS`",
    "lzsweep export": "names a command",
    "data import": "names a command",
    "data export-chunks": "names a command",
    "scontrol requeue": "names a command; tests/cluster/test_faults.py requeues",
    "scancel JOB": "tests/cluster/test_faults.py cancels jobs",
}
"""Commands of the pages that no test here runs, each with the reason."""


@dataclass(frozen=True)
class Command:
    """A command as it is printed.

    Attributes:
        page: name of its file.
        text: without its comment.
        words: of the shell; those of a subcommand that is named alone begin with `lzsweep`.
        comment: what the page says behind `#`.
    """

    page: str
    text: str
    words: tuple[str, ...] = field(compare=False)
    comment: str = field(compare=False, default="")

    @property
    def place(self) -> str:
        """Who runs it: reader, own model, cluster, server, make or nobody."""
        program, *words = self.words
        if self.text in EXCEPTED:
            return "excepted"
        if program == "make":
            return "make"
        if self.page == "extending.md":
            return "own model"
        if program == "sbatch" or (self.page == "cluster.md" and "serve" not in words):
            return "cluster"
        if "submit" in words or any("launcher=slurm" in word for word in words):
            return "cluster"
        if program.endswith("lzsweep"):
            return "server" if _is_served(words) else "reader"
        return {"export": "server", "mlflow": "reader"}.get(program, "nobody")


def _is_served(words: list[str]) -> bool:
    return words[0] == "serve" and (
        "--shared" in words or words[1:2] not in (["backup"], ["restore"])
    )


@dataclass(frozen=True)
class Page:
    """A page in its parts, in the order of the text.

    Attributes:
        name: of its file.
        parts: commands, files (path, text) and blocks of Python.
    """

    name: str
    parts: tuple[Command | tuple[str, str] | str, ...]

    @property
    def commands(self) -> list[Command]:
        return [part for part in self.parts if isinstance(part, Command)]

    @property
    def files(self) -> dict[str, str]:
        return dict(part for part in self.parts if isinstance(part, tuple))

    @property
    def python(self) -> list[str]:
        return [part for part in self.parts if isinstance(part, str)]


@cache
def read_page(path: Path) -> Page:
    """Take a page apart.

    Raises:
        ValueError: an indented block holds a line that is no command, no file and no tree.
    """
    text = path.read_text()
    parts: list[Command | tuple[str, str] | str] = []
    block = re.compile(
        r"(?:`(?P<file>[\w/.]+)`:\n\n)?^```(?P<kind>\w+)\n(?P<body>.*?)^```"
        r"|(?P<indented>(?:^    [^\n]*\n|^\n(?=    ))+)"
        r"|`(?P<span>[^`\n]+)`",
        re.MULTILINE | re.DOTALL,
    )
    for found in block.finditer(text):
        if found["span"]:
            parts += _spans(path.name, found["span"])
        elif found["indented"]:
            parts += _indented(path.name, found["indented"])
        elif found["file"]:
            parts.append((found["file"], found["body"]))
        elif found["kind"] == "python":
            parts.append(found["body"])
        else:
            parts += _commands(path.name, found["body"])
    return Page(path.name, tuple(parts))


def _indented(page: str, block: str) -> list[Command | tuple[str, str] | str]:
    lines = [line[4:] for line in block.splitlines()]
    parts: list[Command | tuple[str, str] | str] = []
    for part in re.split(r"\n\n+", "\n".join(lines).strip("\n")):
        if named := re.match(r"# ([\w/]+\.yaml)\n", part):
            parts.append((named[1], part + "\n"))
        elif not part.startswith("conf/ "):  # a tree of folders
            parts += _commands(page, part)
    return parts


def _commands(page: str, block: str) -> list[Command]:
    commands = []
    for line in re.sub(r" *\\\n +", " ", block).splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] not in PROGRAMS:
            raise ValueError(f"a line of a block must be a command, but {page} has {line!r}")
        text, _, comment = line.partition(" # ")
        commands.append(Command(page, text.strip(), tuple(words), comment))
        commands += [c for span in re.findall(r"`([^`]+)`", comment) for c in _spans(page, span)]
    return commands


def _spans(page: str, span: str) -> list[Command]:
    """The command that a text between two backticks is, if it is one."""
    first, _, rest = span.partition(" ")
    if not rest or "=" in first or first not in (*PROGRAMS, *NAMES):
        return []
    words = shlex.split(span)
    return [Command(page, span, tuple(words if first in PROGRAMS else ["lzsweep", *words]))]


def read_pages() -> list[Page]:
    return [read_page(path) for path in PAGES]


def all_commands() -> list[Command]:
    return [command for page in read_pages() for command in page.commands]


def commands_of(place: str) -> list[Command]:
    """The commands that one place runs, in the order of the pages."""
    return [command for command in all_commands() if command.place == place]
