"""The 19x19 board as two bitboards, with the rules of Leela Zero.

A bitboard is a Python int whose bit `k` stands for the point `k = y * 19 + x`; `x` counts from
column A, `y` from row 1 (the bottom), as in Leela Zero's network planes. Moves are points, or
`PASS`. The rules are the engine's: an occupied point, the simple ko and suicide are illegal;
superko is not known, and a game does not end with two passes.
"""

from __future__ import annotations

from typing import Final

from lzsweep.errors import DataError

BOARD_SIZE: Final = 19
N_POINTS: Final = BOARD_SIZE * BOARD_SIZE
N_MOVES: Final = N_POINTS + 1
PASS: Final = N_POINTS
BLACK: Final = 0
WHITE: Final = 1
NO_KO: Final = -1

FULL_BOARD: Final = (1 << N_POINTS) - 1
_COLUMN_A = sum(1 << (y * BOARD_SIZE) for y in range(BOARD_SIZE))
_NOT_COLUMN_A = FULL_BOARD ^ _COLUMN_A
_NOT_COLUMN_T = FULL_BOARD ^ (_COLUMN_A << (BOARD_SIZE - 1))
_COLUMN_NAMES = "ABCDEFGHJKLMNOPQRST"


def _adjacent(point: int) -> tuple[int, ...]:
    y, x = divmod(point, BOARD_SIZE)
    around = ((y - 1, x), (y, x - 1), (y, x + 1), (y + 1, x))
    return tuple(
        v * BOARD_SIZE + u for v, u in around if 0 <= v < BOARD_SIZE and 0 <= u < BOARD_SIZE
    )


_BIT = tuple(1 << point for point in range(N_POINTS))
_ADJACENT = tuple(_adjacent(point) for point in range(N_POINTS))
_ADJACENT_MASK = tuple(sum(_BIT[near] for near in _ADJACENT[point]) for point in range(N_POINTS))


class IllegalMoveError(DataError, ValueError):
    """A move that the rules refuse."""


def format_move(move: int) -> str:
    """Name a move as Go players do: `Q16`, or `pass`."""
    if move == PASS:
        return "pass"
    y, x = divmod(move, BOARD_SIZE)
    return f"{_COLUMN_NAMES[x]}{y + 1}"


def parse_move(text: str) -> int:
    """Read a move in GTP notation, in either case.

    Raises:
        ValueError: if `text` names no point of the board and is not `pass`.
    """
    name = text.strip().upper()
    if name == "PASS":
        return PASS
    column = _COLUMN_NAMES.find(name[:1]) if name else -1
    row = int(name[1:]) if name[1:].isascii() and name[1:].isdigit() else 0
    if column < 0 or not 1 <= row <= BOARD_SIZE:
        raise ValueError(f"a move must be A1 to T19 (no I) or pass, but got {text!r}.")
    return (row - 1) * BOARD_SIZE + column


def _dead_group(seed: int, stones: int, empty: int) -> int:
    """The group of `stones` that holds `seed` if it has no liberty, else 0."""
    group = front = seed
    while front:
        grown = (
            front << BOARD_SIZE
            | front >> BOARD_SIZE
            | (front & _NOT_COLUMN_T) << 1
            | (front & _NOT_COLUMN_A) >> 1
        )
        if grown & empty:
            return 0
        front = grown & stones & ~group
        group |= front
    return group


def place(own: int, opponent: int, point: int) -> tuple[int, int, int]:
    """Put a stone on the empty `point` and take what has no liberty left.

    A suicide takes the stone's own group, as the engine does inside a setup or a variation; so
    the move was legal (ko apart) iff `point` is set in the first result.

    Returns:
        Own stones, opponent's stones, and the point that the simple ko now forbids (or `NO_KO`).
    """
    own |= _BIT[point]
    around = _ADJACENT_MASK[point]
    empty = FULL_BOARD & ~(own | opponent)
    taken = 0
    touched = around & opponent
    if touched:
        for near in _ADJACENT[point]:
            bit = _BIT[near]
            # Most stones have a liberty of their own, so this test spares most floods.
            if bit & touched and not _ADJACENT_MASK[near] & empty and not bit & taken:
                taken |= _dead_group(bit, opponent, empty)
    if taken:
        ko = taken.bit_length() - 1 if touched == around and taken & (taken - 1) == 0 else NO_KO
        return own, opponent ^ taken, ko
    if not around & empty:
        own ^= _dead_group(_BIT[point], own, empty)
    return own, opponent, NO_KO


class Board:
    """A position and whose stones stand where; only `play` changes it.

    Attributes:
        black: Bitboard of the black stones.
        white: Bitboard of the white stones.
        ko: The point that neither side may play now, or `NO_KO`.
    """

    __slots__ = ("black", "ko", "white")

    def __init__(self, black: int = 0, white: int = 0, ko: int = NO_KO) -> None:
        if black & white or (black | white) & ~FULL_BOARD or black < 0 or white < 0:
            raise ValueError("black and white must be disjoint bitboards of 361 points.")
        self.black = black
        self.white = white
        self.ko = ko

    def is_legal(self, move: int, colour: int) -> bool:
        return self._refusal(move, colour) is None

    def play(self, move: int, colour: int) -> None:
        """Play `move` for `colour`.

        Raises:
            IllegalMoveError: if the point is occupied, forbidden by the ko, or suicide; the board
                is then unchanged.
        """
        refusal = self._refusal(move, colour)
        if refusal:
            side = "white" if colour else "black"
            raise IllegalMoveError(f"{side} cannot play {format_move(move)}: {refusal}.")
        if move == PASS:
            self.ko = NO_KO
        elif colour == BLACK:
            self.black, self.white, self.ko = place(self.black, self.white, move)
        else:
            self.white, self.black, self.ko = place(self.white, self.black, move)

    def _refusal(self, move: int, colour: int) -> str | None:
        if move == PASS:
            return None
        if not 0 <= move < N_POINTS:
            raise ValueError(f"a move must be 0 to {PASS}, but got {move}.")
        bit = _BIT[move]
        if bit & (self.black | self.white):
            return "the point is occupied"
        if move == self.ko:
            return "the ko forbids it"
        own, opponent = (self.white, self.black) if colour else (self.black, self.white)
        return None if bit & place(own, opponent, move)[0] else "it is suicide"
