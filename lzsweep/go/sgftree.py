"""SGF text cut into games, and a game's text into its tree of nodes.

This is a reader of our own, because which games leelaz keeps hangs on how leelaz reads them: it
splits a collection by counting brackets, lets a backslash escape anything anywhere, skips what it
does not know, and keeps lower-case letters in property names. A strict SGF parser (sgfmill's, for
one) refuses some of the games that leelaz keeps and repairs some that it drops. The behaviour
restated here is that of leela-zero's `SGFParser.cpp`, on bytes: SGF's syntax is ASCII, and a
two-byte text whose second byte is a backslash misleads leelaz in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_VALUE = rb"\[(?:[^\]\\]++|\\.?)*+(?:\]|\Z)"
_TO_PARENTHESIS = re.compile(rb"(?:[^()\\\[]++|\\.?|" + _VALUE + rb")*+", re.DOTALL)
_AFTER_OPENING = re.compile(rb"\s*+.?", re.DOTALL)
_TOKEN = re.compile(rb"([A-Z][A-Za-z]*+)((?:\s*+" + _VALUE + rb")*+)|\((?:\s*+;)?|[;)]", re.DOTALL)
_VALUE_TEXT = re.compile(rb"\[((?:[^\]\\]++|\\.?)*+)", re.DOTALL)
_ESCAPE = re.compile(rb"\\(.?)", re.DOTALL)
_FIRST_NAME = re.compile(rb"[A-Z][A-Za-z\s]*")
_SPACE = re.compile(rb"\s+")

_RULE_NAMES = (b"B", b"W", b"AB", b"AW", b"AE", b"PL", b"GM", b"SZ", b"KM", b"HA", b"RE")
_CLOCK_NAMES = (b"TM", b"OT", b"BL", b"WL", b"OB", b"OW")
_DESCRIPTION_NAMES = (b"DT", b"BR", b"WR", b"CA")
KEPT_NAMES = frozenset(_RULE_NAMES + _CLOCK_NAMES + _DESCRIPTION_NAMES)


class Node:
    """One node: the properties that matter to us, each with its values in order, and children."""

    __slots__ = ("children", "properties")

    def __init__(self) -> None:
        self.properties: dict[bytes, list[bytes]] = {}
        self.children: list[Node] = []

    def add_child(self) -> Node:
        child = Node()
        self.children.append(child)
        return child

    def first(self, name: bytes) -> bytes | None:
        """The value that counts where a property occurs several times."""
        values = self.properties.get(name)
        return values[0] if values else None


class Chopper:
    """Cuts a collection into the texts of its games.

    After the iteration `problem` says what the file still held that could not be given out as a
    game (text after an unbalanced parenthesis), or is None.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.problem: str | None = None

    def __iter__(self) -> Iterator[bytes]:
        data, end = self._data, len(self._data)
        nesting = start = found = 0
        position = _TO_PARENTHESIS.match(data, 0).end()  # type: ignore[union-attr]
        while position < end:
            opening = data[position] == 0x28
            position += 1
            if not opening:
                nesting -= 1
                if nesting == 0:
                    found += 1
                    yield data[start:position]
            else:
                if nesting < 0:
                    self.problem = (
                        f"the game at byte {position - 1} is lost: too many ')' before it"
                    )
                elif nesting == 0:
                    # The character after the first '(' is a ';' in every sane file; it is eaten.
                    position = _AFTER_OPENING.match(data, position).end()  # type: ignore[union-attr]
                    start = position
                nesting += 1
            position = _TO_PARENTHESIS.match(data, position).end()  # type: ignore[union-attr]
        if found == 0:
            # A single game whose closing parenthesis is missing, as some servers write it.
            yield data[start:]
        elif nesting > 0:
            self.problem = f"the game from byte {start} on has no closing ')'"


def parse_tree(text: bytes) -> Node:
    """Read one game's text, as `Chopper` gives it, into its tree; never fails."""
    root = Node()
    # The innermost open variation is last: its current node, and whether a '(' awaits its ')'.
    nodes, split = [root], [False]
    for token in _TOKEN.finditer(_join_first_name(text)):
        name = token[1]
        if name is not None:
            if name in KEPT_NAMES and token[2]:
                values = _VALUE_TEXT.findall(token[2])
                if b"\\" in token[2]:
                    values = [_ESCAPE.sub(rb"\1", value) for value in values]
                properties = nodes[-1].properties
                if name in properties:
                    properties[name] += values
                else:
                    properties[name] = values
            continue
        mark = token[0]
        if mark == b";":
            nodes[-1] = nodes[-1].add_child()
        elif mark[0] == 0x28:
            split[-1] = True
            nodes.append(nodes[-1].add_child())
            split.append(False)
        else:
            while split and not split[-1]:
                nodes.pop()
                split.pop()
            if not split:
                break
            split[-1] = False
    return root


def _join_first_name(text: bytes) -> bytes:
    # Only inside a game's first property name does leelaz skip white space.
    first = _FIRST_NAME.search(text)
    if first and _SPACE.search(first[0].rstrip()):
        return text[: first.start()] + _SPACE.sub(b"", first[0]) + text[first.end() :]
    return text
