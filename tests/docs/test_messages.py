"""Each message that a page quotes is one that the program can print."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from math import inf
from pathlib import Path

import mlflow
import pytest

from tests.go.engine import PROJECT

PAGE = "lzsweep/sweep/page.html"
FILLED = "\0"
"""Stands in a text of the sources for what is filled in when it is printed."""
THEIRS = {"Invalid Host header": "server/security_utils.py"}
"""Messages of MLflow, and where they are."""


def texts(source: Path) -> Iterator[str]:
    """The texts of a module, those that are put together in one piece."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%[sd]|\{\w*\}", FILLED, node.value)
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                str(p.value) if isinstance(p, ast.Constant) else FILLED for p in node.values
            )


@cache
def package_texts() -> list[str]:
    files = sorted((PROJECT / "lzsweep").rglob("*.py"))
    page = re.sub(r"<[^>]*>|\{\{.*?\}\}", f" {FILLED} ", (PROJECT / PAGE).read_text())
    return [*(text for path in files for text in texts(path)), *page.splitlines()]


def quotes() -> Iterator[tuple[str, str]]:
    """Page and message: what its tables quote in their first column."""
    for name in ("troubleshooting.md", "cluster.md"):
        table = (PROJECT / "docs" / name).read_text().rpartition("| message ")[2]
        for row in table.splitlines()[2:]:
            for quote in re.findall(r"`([^`]+)`", row.split(" | ")[0]):
                yield name, quote


def fits(quote: str, text: str) -> bool:
    """Whether a text may print a message, `...` in which is anything, as is what is filled in."""
    words = tuple(quote.lower().replace("=...", "=").strip(".?").split())
    said = tuple(text.lower().split())

    @cache
    def n_same(word: int, there: int) -> float:
        """How many words from here on are those of the text; -inf if others are in the way."""
        if word == len(words):
            return 0
        if there == len(said):
            return n_same(word + 1, there) if words[word] == "..." else -inf
        if words[word] in said[there] and words[word] != "...":
            return 1 + n_same(word + 1, there + 1)
        if FILLED in said[there]:
            return max(n_same(word + 1, there), n_same(word, there + 1))
        if words[word] == "...":
            return max(n_same(word + 1, there), n_same(word, there + 1))
        return -inf

    most = max((n_same(0, start) for start in range(len(said))), default=-inf)
    return most > sum(word != "..." for word in words) / 2


def is_printed(quote: str) -> bool:
    """Whether one text of the sources fits, or one for each part, where it is put together."""
    return any(fits(quote, text) for text in package_texts()) or (
        len(parts := re.split(r"[:;,] ", quote)) > 1 and all(map(is_printed, parts))
    )


@pytest.mark.parametrize(("page", "quote"), list(quotes()))
def test_a_message_is_one_of_ours(page: str, quote: str) -> None:
    if quote in THEIRS:
        assert quote in (Path(mlflow.__file__).parent / THEIRS[quote]).read_text()
        return
    assert is_printed(quote)


def test_a_message_that_nobody_prints_is_found_out() -> None:
    assert quotes()
    for quote in ("the disk is empty", "worker ... was found", "a server needs a blue moon"):
        assert not is_printed(quote), quote
    assert fits("worker ... was lost", f"worker {FILLED} was lost")
    assert fits("the same error 3 times", f"stopped: the same error {FILLED} times running")
