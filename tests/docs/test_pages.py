"""No command of a page is forgotten, and what the prose names is there."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from hydra._internal.utils import get_args_parser

from lzsweep.commands import _OWN_MODULES, app
from lzsweep.config import conf_dir, make_loader
from lzsweep.sweep.composer import Composer
from lzsweep.sweep.syntax import parse_space, probe_points
from tests.docs.pages import EXCEPTED, PAGES, README, all_commands, commands_of, read_page
from tests.go.engine import PROJECT

OVERRIDE = r"[+~]{0,2}[a-z][\w/.@]*=\S.*"
SLURMS = {"--gpus", "--nodes", "--ntasks-per-node", "--wrap"}
OF_THE_READERS = ("hydra/launcher=mine", "hydra/launcher=NAME", "init_from=net.txt.gz")
"""Overrides that name what a reader has made; the tests that type them have made it too."""
FORMS = {"a,b", "key=value", "+key=value", "++key=value", "network=glob(*)"}


def test_every_command_is_run_or_excepted_with_a_reason() -> None:
    assert [c.text for c in commands_of("nobody")] == []
    texts = {c.text for c in all_commands()}
    assert [text for text in EXCEPTED if text not in texts] == [], "no longer on any page"
    assert len(texts) > 90


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http|#)([^)]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_options_in_the_prose_are_there() -> None:
    for module in ("study", *_OWN_MODULES):
        importlib.import_module(f"lzsweep.commands.{module}")
    flags = {o for action in get_args_parser()._actions for o in action.option_strings}
    known = {*options(typer.main.get_command(app)), *flags, *SLURMS}
    for page in PAGES:
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]+", page.read_text()):
            assert option in known, f"{page.name}: {option}"


def options(command: Any) -> Iterator[str]:
    """Of a command and of those below it; typer brings a click of its own."""
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    for child in getattr(command, "commands", {}).values():
        yield from options(child)


def test_overrides_in_the_prose_compose() -> None:
    """Each `key=value` between two backticks is one that the configuration takes."""
    loader = make_loader([f"file://{conf_dir()}"])
    problems = []
    for page in PAGES:
        for span in dict.fromkeys(re.findall(r"`([^`\n]+)`", page.read_text())):
            if not re.fullmatch(OVERRIDE, span) or "..." in span or "|" in span:
                continue
            words = re.split(r" (?=[+~]?[\w/.]+=)", span)
            if any(w in FORMS or w.endswith(OF_THE_READERS) for w in words):
                continue
            if any(w in ("data=sgf", "data=chunks") for w in words):
                words.append("data.path=games/")
            if any(w.startswith("hydra.launcher.") for w in words):
                words.append("hydra/launcher=slurm")
            try:
                space, faults = parse_space(words, {}, loader, lambda *_: {})
                point = next(probe_points(space))
                Composer(loader, space.fixed)(space.to_overrides(point))
            except Exception as error:
                faults = [str(error)]
            problems += [f"{page.name}: {span}: {fault}" for fault in faults]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("text", sorted({c.text for c in all_commands() if c.words[0] == "make"}))
def test_targets_are_made(text: str) -> None:
    make = ("make", "--no-print-directory", "-C", str(PROJECT), "--old-file=install")
    _, *words = text.split()
    told = subprocess.run([*make, "-n", *words], capture_output=True, text=True, check=True)
    recipe = told.stdout.splitlines()
    if text == "make help":
        told = subprocess.run([*make, *words], capture_output=True, text=True, check=True)
        for command in commands_of("make"):
            assert f"make {command.words[1]} " in told.stdout
    elif text == "make demo":
        assert ".venv/bin/lzsweep -m sweeps=demo" in recipe
        assert "lzsweep -m sweeps=demo" in {c.text for c in commands_of("reader")}
    elif text.startswith("make submit"):
        assert ".venv/bin/lzsweep submit sweeps=cluster" in recipe
        assert "lzsweep submit sweeps=cluster" in {c.text for c in commands_of("cluster")}
    else:
        assert text in EXCEPTED
    if text in ("make test", "make lint types"):
        assert f"\n{text}\n" in f"{(PROJECT / '.ci/run').read_text()}\n"


def test_the_extra_that_is_to_be_installed_is_one() -> None:
    named = {x for page in PAGES for x in re.findall(r"lzsweep\[(\w+)\]", page.read_text())}
    assert named == {"server"}
    assert named <= set(importlib.metadata.metadata("lzsweep").get_all("Provides-Extra") or ())


def test_what_a_page_names_mine_is_on_it() -> None:
    assert "conf/network/mine.yaml" in read_page(README).files
