"""Which games are learnt from: a `Filter` over what the SGF says of a game.

A limit leaves out every game beyond it, and every game that does not say; both are drops with a
reason of their own, counted like the reader's. A handicap that is not given is the number of
black's setup stones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from typing import Any

from lzsweep.errors import ConfigError
from lzsweep.go.game import Drop, Game
from lzsweep.go.rank import rank_level

_DATE = re.compile(r"\d{4}(-\d\d){0,2}")


@dataclass(frozen=True, slots=True)
class Filter:
    """Limits on games, all inclusive; None means no limit.

    Attributes:
        min_moves: Moves that a game must have.
        min_rank: Rank that both players must have: `5k`, `6d`, `1p`.
        komi: Lowest and highest.
        dates: First and last: `2008`, `2008-03` or `2008-03-31`.
        handicap: Fewest and most stones.

    Raises:
        ConfigError: a limit cannot be understood, or leaves out everything.
    """

    min_moves: int = 0
    min_rank: str | None = None
    komi: tuple[float, float] | None = None
    dates: tuple[str, str] | None = None
    handicap: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        problems = []
        if type(self.min_moves) is not int or self.min_moves < 0:
            problems.append(
                f"`min_moves` must be a whole number >= 0, but got {self.min_moves!r}."
            )
        if self.min_rank is not None and rank_level(str(self.min_rank)) is None:
            problems.append(f"`min_rank` must be like 5k, 6d or 1p, but got {self.min_rank!r}.")
        problems += _range_problems("komi", self.komi, (int, float))
        problems += _range_problems("handicap", self.handicap, (int,))
        problems += _range_problems("dates", self.dates, (str,))
        if problems:
            raise ConfigError([f"data.filter: {problem}" for problem in problems])

    @classmethod
    def of(cls, limits: Mapping[str, Any] | None) -> Filter:
        """A filter from plain configuration: lists for ranges, years as numbers.

        Raises:
            ConfigError: a key is unknown, or as for the class.
        """
        given = dict(limits or {})
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(given) - set(known)):
            raise ConfigError(
                [f"data.filter takes {', '.join(known)}, but got {', '.join(unknown)}."]
            )
        for name in ("komi", "handicap", "dates"):
            if isinstance(given.get(name), list):
                given[name] = tuple(given[name])
        if isinstance(given.get("dates"), tuple):
            given["dates"] = tuple(str(date) for date in given["dates"])
        return cls(**given)

    def limits(self) -> dict[str, Any]:
        """The limits that are set, as plain data."""
        default = asdict(Filter())
        return {name: v for name, v in asdict(self).items() if v != default[name]}

    def refuse(self, game: Game) -> Drop | None:
        """The drop that the game becomes; None if it may stay."""
        if len(game.moves) < self.min_moves:
            return Drop(game.source, "too few moves", f"{len(game.moves)} moves")
        return (
            self._refuse_rank(game)
            or _outside(game.source, "komi", game.komi, self.komi)
            or _outside(game.source, "date", game.date, _last_days(self.dates))
            or _outside(game.source, "handicap", _handicap(game), self.handicap)
        )

    def _refuse_rank(self, game: Game) -> Drop | None:
        if self.min_rank is None:
            return None
        least = rank_level(self.min_rank)
        for rank in (game.black_rank, game.white_rank):
            level = rank_level(rank or "")
            if level is None:
                return Drop(game.source, "rank unknown", f"rank {rank!r}")
            if least is not None and level < least:
                return Drop(game.source, "rank too low", f"rank {rank}")
        return None


def select(games: Iterable[Game | Drop], limits: Filter) -> Iterator[Game | Drop]:
    """Pass games on, turning those beyond the limits into drops."""
    for game in games:
        yield game if isinstance(game, Drop) else (limits.refuse(game) or game)


def _range_problems(name: str, limits: Sequence[Any] | None, kinds: tuple[type, ...]) -> list[str]:
    if limits is None:
        return []
    is_pair = isinstance(limits, tuple) and len(limits) == 2
    # No number is itself but what is none ("nan"), and a bool is an int.
    if not is_pair or not all(type(value) in kinds and value == value for value in limits):
        return [f"`{name}` must be a pair [lowest, highest], but got {limits!r}."]
    if name == "dates" and not all(map(_is_date, limits)):
        return [f"`{name}` must be like 2008, 2008-03 or 2008-03-31, but got {limits!r}."]
    low, high = limits
    if low > (f"{high}~" if name == "dates" else high):
        return [f"`lowest <= highest` must hold for `{name}`, but got {limits!r}."]
    if name == "handicap" and low < 0:
        return [f"`{name}` must not be negative, but got {limits!r}."]
    return []


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(f"{text}-01-01"[:10])
    except ValueError:
        return False
    return _DATE.fullmatch(text) is not None


def _last_days(dates: tuple[str, str] | None) -> tuple[str, str] | None:
    # Text compares as dates do; what is beyond every digit makes "2008" hold all of 2008.
    return (dates[0], f"{dates[1]}~") if dates else None


def _outside(source: str, name: str, value: Any, limits: tuple[Any, Any] | None) -> Drop | None:
    if limits is None:
        return None
    if value is None:
        return Drop(source, f"{name} unknown", "")
    if limits[0] <= value <= limits[1]:
        return None
    return Drop(source, f"{name} out of range", str(value))


def _handicap(game: Game) -> int:
    return game.setup_black.bit_count() if game.handicap is None else game.handicap
