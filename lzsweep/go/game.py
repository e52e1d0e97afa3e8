"""A game's tree judged and replayed as leelaz' `dump_supervised` does it.

leelaz (0.17; leela-zero's `SGFTree.cpp`, `Training.cpp`) goes over a game three times, and the
game's records follow from all three:

1. *Check*: every node of every variation is applied, with its setup stones; a move or a stone on a
   stone of the other colour, or off the board, drops the whole game. Ko and suicide are no faults
   here. A komi, a size or a `GM` in a later node empties the board for what follows.
2. *Replay*: the first variation's moves, of whatever colour, are played from the root's setup; the
   replay ends at a move on an occupied point and after 999 nodes.
3. *Main line*: one move a node, the colours strictly alternating; a node without the colour that
   is due gives no move, but its turn is counted.

Record `i` pairs board `i` of the replay with move `i` of the main line; a move that is illegal
there drops the game. So a stray comment node cuts a game short, and a repeated colour can mislabel
it.
`strict=True` refuses the games in which the records are not just what was played.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from dataclasses import dataclass

from lzsweep.go.board import BLACK, BOARD_SIZE, N_POINTS, NO_KO, PASS, WHITE, format_move, place
from lzsweep.go.rank import decode_rank
from lzsweep.go.sgftree import Node, parse_tree

FRAME_BYTES = 92  # two bitboards of 361 bits, padded to 46 bytes each
_HALF_FRAME_BYTES = FRAME_BYTES // 2
_MAX_REPLAYED_NODES = 999
_MAX_GAME_BYTES = 8 << 20
_MAX_NODES = 100_000  # a node takes a kilobyte of memory, and could be one byte of the text

State = tuple[int, int, int, int]  # black, white, ko point, colour to move
_START: State = (0, 0, NO_KO, BLACK)


@dataclass(frozen=True, slots=True)
class Game:
    """One game that can be trained on: `n` positions with the move played and the winner.

    Attributes:
        source: Where it was read, for messages: `file!member#number`.
        setup_black: Bitboard of the black stones before the first move.
        setup_white: The same of white.
        colours: `[n]` the side to move (0 black, 1 white), one byte each.
        moves: `[n]` uint16, 0 to 361.
        frames: `[n * 92]` the board before each move: black, then white, 46 bytes little-endian.
        winner: `BLACK` or `WHITE`.
        key: 16 bytes that name the content (setup, colours, moves, winner).
        date: As `YYYY`, `YYYY-MM` or `YYYY-MM-DD`; None where the SGF has none.
        komi: In points; None where the SGF has none.
        handicap: None where the SGF has none.
        black_rank: The SGF's text, such as `9d`; None where absent.
        white_rank: The same of white.
    """

    source: str
    setup_black: int
    setup_white: int
    colours: bytes
    moves: array[int]
    frames: bytes
    winner: int
    key: bytes
    date: str | None = None
    komi: float | None = None
    handicap: int | None = None
    black_rank: str | None = None
    white_rank: str | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    """A game, or a damaged file, that gives no positions.

    Attributes:
        source: As in `Game`.
        reason: One of few, to count by: `unreadable`, `not a go game`, `board size`, `no moves`,
            `no result`, `time result`, `bad property`, `illegal move`, `colours out of turn`;
            when strict also `truncated`, `mislabelled`, `setup misread`.
        detail: What exactly, for a person.
    """

    source: str
    reason: str
    detail: str


class _Refusal(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def read_game(text: bytes, source: str, *, strict: bool = False) -> Game | Drop:
    """Judge and replay one game's text (as `sgftree.Chopper` gives it)."""
    if len(text) > _MAX_GAME_BYTES:
        return Drop(source, "unreadable", f"one game of {len(text)} bytes")
    if (n_nodes := text.count(b";") + text.count(b"(")) > _MAX_NODES:
        return Drop(source, "unreadable", f"one game of {n_nodes} nodes")
    root = parse_tree(text)
    try:
        winner = _winner(root)
        replay = _Replay()
        start = replay.check(root)
        states = replay.follow(root, start)
        moves = _main_line(root, start[3])
        n_records = min(len(states), len(moves))
        if n_records == 0:
            raise _Refusal(*_why_empty(root))
        replay.check_legal(states, moves)
        if strict:
            _check_strict(root, states, moves)
    except _Refusal as refusal:
        return Drop(source, refusal.reason, refusal.detail)
    return _pack(source, root, winner, states[:n_records], moves[:n_records])


def _pack(source: str, root: Node, winner: int, states: list[State], moves: list[int]) -> Game:
    colours = bytes(state[3] for state in states)
    packed_moves = array("H", moves)
    size = _HALF_FRAME_BYTES
    frames = b"".join(
        half.to_bytes(size, "little") for state in states for half in (state[0], state[1])
    )
    content = hashlib.blake2b(frames[:FRAME_BYTES], digest_size=16)
    content.update(bytes([winner]) + colours)
    # Byte order is fixed, so that a game has the same key, and the same split, everywhere.
    content.update(b"".join(move.to_bytes(2, "little") for move in moves))
    return Game(
        source=source,
        setup_black=states[0][0],
        setup_white=states[0][1],
        colours=colours,
        moves=packed_moves,
        frames=frames,
        winner=winner,
        key=content.digest(),
        date=_date(root.first(b"DT")),
        komi=_komi(root.first(b"KM")),
        handicap=_handicap(root.first(b"HA")),
        black_rank=_rank(root, b"BR"),
        white_rank=_rank(root, b"WR"),
    )


class _Replay:
    """Plays stones as the engine does; check and replay meet the same ones, so it remembers."""

    def __init__(self) -> None:
        self._placed: dict[tuple[int, int, int], tuple[int, int, int]] = {}

    def play(self, state: State, colour: int, move: int) -> State:
        black, white, _, _ = state
        if move == PASS:
            return black, white, NO_KO, 1 - colour
        if colour == BLACK:
            black, white, ko = self._place(black, white, move)
        else:
            white, black, ko = self._place(white, black, move)
        return black, white, ko, 1 - colour

    def check(self, root: Node) -> State:
        """Apply every node of every variation; give the position that the root sets up."""
        start = self._apply_properties(root, _START)
        pending = [(child, start) for child in root.children]
        while pending:
            node, state = pending.pop()
            coloured = _coloured_move(node)
            if coloured:
                state = self._put(state, *coloured)
            if len(node.properties) > 1 or not coloured:
                state = self._apply_properties(node, state)
            for child in node.children:
                pending.append((child, state))
        return start

    def follow(self, root: Node, start: State) -> list[State]:
        """The boards of the first variation, the setup first."""
        states = [start]
        state, node = start, root
        for _ in range(_MAX_REPLAYED_NODES):
            if not node.children:
                break
            node = node.children[0]
            coloured = _coloured_move(node)
            if coloured is None:
                continue
            colour, move = coloured
            if move != PASS and (state[0] | state[1]) >> move & 1:
                break
            state = self.play(state, colour, move)
            states.append(state)
        return states

    def check_legal(self, states: list[State], moves: list[int]) -> None:
        for number, (state, move) in enumerate(zip(states, moves, strict=False), start=1):
            if move == PASS:
                continue
            black, white, ko, colour = state
            own, opponent = (white, black) if colour else (black, white)
            if (black | white) >> move & 1:
                fault = "occupied"
            elif move == ko:
                fault = "a ko taken back at once"
            elif not self._place(own, opponent, move)[0] >> move & 1:
                fault = "suicide"
            else:
                continue
            raise _Refusal("illegal move", f"{_name_move(number, colour, move)}: {fault}")

    def _place(self, own: int, opponent: int, move: int) -> tuple[int, int, int]:
        key = (own, opponent, move)
        result = self._placed.get(key)
        if result is None:
            result = self._placed[key] = place(own, opponent, move)
        return result

    def _put(self, state: State, colour: int, move: int) -> State:
        if move != PASS:
            if state[1 - colour] >> move & 1:
                raise _Refusal(
                    "illegal move",
                    f"{'BW'[colour]} {format_move(move)} on a stone of the other colour",
                )
            if state[colour] >> move & 1:
                return state
        return self.play(state, colour, move)

    def _apply_properties(self, node: Node, state: State) -> State:
        properties = node.properties
        game_kind = node.first(b"GM")
        if game_kind not in (None, b"1"):
            raise _Refusal("not a go game", f"GM[{_show(game_kind)}]")
        size = node.first(b"SZ")
        if size is not None and _leading_int(size) != BOARD_SIZE:
            raise _Refusal("board size", f"SZ[{_show(size)}]")
        if game_kind is not None or size is not None or b"KM" in properties:
            state = _START
        _check_clock(node)
        stones = properties.get(b"AB", ())
        if not stones and (_leading_float(node.first(b"HA")) or 0.0) > 0.0 and node.children:
            stones = node.children[0].properties.get(b"AB", ())
        for value in stones:
            state = self._put(state, BLACK, _point(value))
        for value in properties.get(b"AW", ()):
            state = self._put(state, WHITE, _point(value))
        player = node.first(b"PL")
        if player in (b"B", b"W"):
            state = (*state[:3], BLACK if player == b"B" else WHITE)
        return state


def _winner(root: Node) -> int:
    if not root.children and not root.properties:
        raise _Refusal("unreadable", "no SGF game tree in it")
    kind = root.first(b"GM")
    if kind not in (None, b"1"):
        raise _Refusal("not a go game", f"GM[{_show(kind)}]")
    result = root.first(b"RE")
    if result is None:
        raise _Refusal("no result", "the first node has no RE")
    if b"Time" in result:
        raise _Refusal("time result", f"RE[{_show(result)}]")
    if result.startswith(b"B+"):
        return BLACK
    if result.startswith(b"W+"):
        return WHITE
    raise _Refusal("no result", f"RE[{_show(result)}] is neither B+ nor W+")


def _main_line(root: Node, colour: int) -> list[int]:
    moves = []
    node = root
    while node.children:
        node = node.children[0]
        value = node.first(b"W" if colour else b"B")
        if value is not None:
            moves.append(_point(value))
        colour = 1 - colour
    return moves


def _coloured_move(node: Node) -> tuple[int, int] | None:
    properties = node.properties
    values = properties.get(b"B")
    if values:
        return BLACK, _point(values[0])
    values = properties.get(b"W")
    return (WHITE, _point(values[0])) if values else None


_POINTS = {
    bytes((97 + x, 97 + row)): (BOARD_SIZE - 1 - row) * BOARD_SIZE + x
    for x in range(BOARD_SIZE)
    for row in range(BOARD_SIZE)
} | {b"": PASS, b"tt": PASS}


def _point(value: bytes) -> int:
    # Only the first two characters count, so `resign` is the point "re" and "dd:ee" is "dd".
    point = _POINTS.get(value)
    if point is None:
        point = _POINTS.get(value[:2], PASS)
        if point == PASS:
            raise _Refusal("illegal move", f"[{_show(value)}] is no point of the board")
    return point


def _why_empty(root: Node) -> tuple[str, str]:
    node, first = root, None
    while node.children and first is None:
        node = node.children[0]
        first = _coloured_move(node)
    if first is None:
        return "no moves", "the first variation has no move"
    side = "white" if first[0] else "black"
    return "colours out of turn", f"{side} moves first, or a node without a move comes before"


def _check_strict(root: Node, states: list[State], moves: list[int]) -> None:
    played: list[tuple[int, bytes]] = []
    node: Node | None = root
    while node is not None:
        names = node.properties
        played += [(BLACK, value) for value in names.get(b"B", ())]
        played += [(WHITE, value) for value in names.get(b"W", ())]
        setup = [*names.get(b"AB", ()), *names.get(b"AW", ())]
        misread = setup and (node is not root or played)
        if misread or b"AE" in names or any(len(value) != 2 for value in setup):
            raise _Refusal("setup misread", "a setup that leelaz ignores or reads in part")
        node = node.children[0] if node.children else None
    for number, ((colour, value), state, move) in enumerate(
        zip(played, states, moves, strict=False), start=1
    ):
        if colour != state[3] or len(value) not in (0, 2) or _point(value) != move:
            was = f"{'BW'[colour]}[{_show(value)}]"
            raise _Refusal("mislabelled", f"{was} would be {_name_move(number, state[3], move)}")
    n_records = min(len(states), len(moves))
    if n_records < len(played):
        raise _Refusal("truncated", f"{n_records} of {len(played)} moves would be kept")


def _check_clock(node: Node) -> None:
    main_time = node.first(b"TM")
    if main_time is None:
        return
    clock = [(b"TM", main_time)]
    for left, stones in ((b"BL", b"OB"), (b"WL", b"OW")):
        # Stones left are read only beside the time left.
        if node.first(left):
            clock += [(name, node.first(name) or b"0") for name in (left, stones)]
    for name, value in clock:
        number = _leading_int(value)
        if number is None or not -(2**31) <= number < 2**31:
            raise _Refusal("bad property", f"{_show(name)}[{_show(value)}] must be a number")


_INT = re.compile(rb"\s*([+-]?[0-9]+)")
_FLOAT = re.compile(rb"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)")
_DATE = re.compile(rb"\s*(\d{4}(?:-\d\d(?:-\d\d)?)?)")


def _leading_int(value: bytes) -> int | None:
    found = _INT.match(value[:64])
    return int(found[1]) if found else None


def _leading_float(value: bytes | None) -> float | None:
    found = _FLOAT.match(value[:64]) if value else None
    return float(found[1]) if found else None


def _komi(value: bytes | None) -> float | None:
    komi = _leading_float(value)
    if komi is None or abs(komi) > 100 * N_POINTS:
        return None
    # Some servers write hundredths of a point (375, 650, 750); nobody plays such a komi.
    return komi / 100 if abs(komi) >= 100 else komi


def _handicap(value: bytes | None) -> int | None:
    handicap = _leading_float(value)
    return int(handicap) if handicap is not None and 0 <= handicap <= N_POINTS else None


def _date(value: bytes | None) -> str | None:
    found = _DATE.match(value) if value else None
    return found[1].decode("ascii") if found else None


def _rank(root: Node, name: bytes) -> str | None:
    value = root.first(name)
    return decode_rank(value, _show(root.first(b"CA"))) if value else None


def _name_move(number: int, colour: int, move: int) -> str:
    return f"move {number}, {'BW'[colour]} {format_move(move)}"


def _show(value: bytes | None) -> str:
    text = (value or b"")[:40].decode("utf-8", "replace")
    return "".join(character if character.isprintable() else "?" for character in text)
