"""What the docs say can be typed: each command is understood, and the worked example runs."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main

from lzsweep.commands import _OWN_MODULES, NAMES, app
from lzsweep.config import compose, conf_dir, make_loader
from lzsweep.sweep.syntax import parse_space, probe_points
from tests.go.engine import PROJECT
from tests.sweep.conftest import Cli, cli  # noqa: F401

PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
COMMANDS = [
    (page.name, words)
    for page in PAGES
    for line in re.sub(r" \\\n +", " ", page.read_text()).splitlines()
    if re.match(r"    lzsweep |lzsweep (-m|best|report) ", line)
    for words in [shlex.split(line, comments=True)[1:]]
]


def named(command: tuple[str, list[str]]) -> str:
    return f"{command[0]}: {' '.join(command[1])}"


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[1][0] in NAMES], ids=named)
def test_subcommands_and_their_options_are_there(command: tuple[str, list[str]]) -> None:
    if any(word == "|" for word in command[1]):
        return
    for module in ("study", *_OWN_MODULES):
        importlib.import_module(f"lzsweep.commands.{module}")
    known: Any = typer.main.get_command(app)
    words = list(command[1])
    context = click.Context(known, info_name="lzsweep")
    while isinstance(known, click.Group) and words and words[0] in known.commands:
        known = known.commands[words.pop(0)]
        if isinstance(known, click.Group) and not (words and words[0] in known.commands):
            break
        context = click.Context(known, parent=context)
    made = known.make_context(known.name, words, parent=context.parent, resilient_parsing=False)
    assert made.command is known, "click would have refused an unknown word or option"


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[1][0] not in NAMES], ids=named)
def test_trainings_and_sweeps_compose(command: tuple[str, list[str]]) -> None:
    words = [word for word in command[1] if word != "-m"]
    if words[0].startswith("-") or any("capture" in word for word in words):
        return  # a folder of the reader's own; the worked example is run below
    if any("mine" in word or (word.startswith("study.") and "old" in word) for word in words):
        return  # as is what the reader has named so
    loader = make_loader([f"file://{conf_dir()}"])
    hydra = [w for w in words if w.startswith("hydra")]
    space, problems = parse_space([w for w in words if w not in hydra], {}, loader, lambda *_: {})
    assert not problems
    point = next(probe_points(space))
    assert compose(loader, [*space.fixed, *hydra, *space.to_overrides(point)])


def blocks(page: str) -> dict[str, str]:
    """The files of a page: each code block under the line that names it."""
    text = (PROJECT / "docs" / page).read_text()
    return {
        name: body
        for name, body in re.findall(r"`([\w/.]+)`:\n\n```\w+\n(.*?)```", text, re.DOTALL)
    }


@pytest.mark.slow
def test_a_model_of_the_readers_own_is_swept(
    cli: Cli,  # noqa: F811
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, body in blocks("extending.md").items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(body)
    monkeypatch.syspath_prepend(str(work))
    sweep, best, report = [words for page, words in COMMANDS if page == "extending.md"]
    code, out, err = cli(*sweep)
    assert code == 0, err
    assert "3 of 3 trials finished" in out
    assert "best: #" in out
    code, out, _ = cli(*best)
    assert code == 0
    right = float(re.findall(r"0\.\d{4}", out)[-1])
    assert right > 0.5
    code, out, _ = cli(*report)
    assert code == 0
    assert (work / out.strip()).exists()


def test_the_docs_name_what_is_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http|#)([^)]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
