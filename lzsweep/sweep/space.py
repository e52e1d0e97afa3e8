"""The search space: what is searched, under which condition, and a point of it as overrides.

Every value of a parameter is kept in the form that goes behind `key=` of an override: numbers and
booleans as they are, anything else as its override text (`small`, `"a b"`, `[64,128]`, `null`).
So what Optuna stores, what people read and what Hydra composes are the same thing.

A parameter that an option of a searched group owns exists only where that option is chosen.
Optuna knows it as `lr@network=big`, because two ranges under one name would switch CMA-ES and GP
off; people see `lr`. A point holds the keys that people see.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)

Value = str | int | float | bool
Point = frozenset[tuple[str, Value]]
"""What makes two points the same."""


@dataclass(frozen=True)
class Parameter:
    """One searched key.

    Attributes:
        key: an absolute config key or a group, as people see it.
        distribution: its values.
        text: the sweep as it was written (`tag(log,interval(1e-4,1e-1))`).
        prefix: `+` or `++` where the key is added to the config, else empty.
        owner: the group and the option that it belongs to; None if it is always there.
        is_interval: the sampler decides; otherwise each value is a point of the grid.
        is_reversed: the grid begins with the highest value.
    """

    key: str
    distribution: BaseDistribution
    text: str
    prefix: str = ""
    owner: tuple[str, str] | None = None
    is_interval: bool = False
    is_reversed: bool = False

    @property
    def name(self) -> str:
        """What Optuna calls it."""
        return self.key if self.owner is None else f"{self.key}@{'='.join(self.owner)}"

    def is_active(self, point: Mapping[str, Value]) -> bool:
        """Whether it exists where these values were chosen before."""
        return self.owner is None or point.get(self.owner[0]) == self.owner[1]

    def size(self) -> int | None:
        """How many values there are; None for a continuous range."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return len(d.choices)
        if isinstance(d, IntDistribution):
            return (d.high - d.low) // d.step + 1
        assert isinstance(d, FloatDistribution)
        if d.single():
            return 1
        return None if d.step is None else round((d.high - d.low) / d.step) + 1

    def values(self) -> Sequence[Value]:
        """The values of a finite parameter, in the order of the grid."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return d.choices  # type: ignore[return-value]  # the syntax made no None
        n = self.size()
        assert n is not None
        assert isinstance(d, IntDistribution | FloatDistribution)
        if isinstance(d, IntDistribution):
            values: Sequence[Value] = range(d.low, d.high + 1, d.step)
        else:
            values = [tidy(d, d.low + i * (d.step or 0.0)) for i in range(n)]
        return values[::-1] if self.is_reversed else values

    def holds(self, value: object) -> bool:
        """Whether it can take this value."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return any(value == c and type(value) is type(c) for c in d.choices)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return bool(d._contains(value)) and (isinstance(d, FloatDistribution) or value % 1 == 0)


def tidy(distribution: BaseDistribution, value: Any) -> Value:
    """The value as Hydra would write it: a step of 0.1 gives 0.3, not 0.30000000000000004."""
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        low, step = Decimal(str(distribution.low)), Decimal(str(distribution.step))
        return float(low + round((value - distribution.low) / distribution.step) * step)
    result: Value = value
    return result


def shown_params(
    params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
) -> dict[str, Value]:
    """Optuna's parameters of a trial as people see them."""
    return {
        (name.partition("@")[0] if "=" in name else name): tidy(distributions[name], value)
        for name, value in params.items()
    }


def point_key(point: Mapping[str, Value]) -> Point:
    """The point as something that sets can hold."""
    return frozenset(point.items())


@dataclass(frozen=True)
class Space:
    """What is searched, what stays fixed.

    Attributes:
        parameters: all of them; a group stands before what its options own.
        fixed: overrides that hold for every trial, in the order given.
    """

    parameters: tuple[Parameter, ...]
    fixed: tuple[str, ...] = ()

    @property
    def is_grid(self) -> bool:
        """No parameter is an interval, so the sweep is the full grid."""
        return not any(p.is_interval for p in self.parameters)

    @property
    def texts(self) -> dict[str, str]:
        """Each key with its sweeps, as people read them."""
        texts: dict[str, str] = {}
        for p in self.parameters:
            text = p.text if p.owner is None else f"{p.text} for {'='.join(p.owner)}"
            texts[p.key] = f"{texts[p.key]}; {text}" if p.key in texts else text
        return texts

    def active(self, point: Mapping[str, Value]) -> Iterator[Parameter]:
        """The parameters that exist at a point, in their order; it may grow meanwhile."""
        return (p for p in self.parameters if p.is_active(point))

    def is_whole(self, point: Mapping[str, Value]) -> bool:
        """Whether the point has a value for each parameter that exists there."""
        return all(p.key in point for p in self.active(point))

    @property
    def owners(self) -> set[str]:
        """The groups with an option that owns parameters."""
        return {p.owner[0] for p in self.parameters if p.owner}

    def grid(self, chosen: Mapping[str, Value] | None = None) -> Iterator[dict[str, Value]]:
        """Each point with these values once, if they are finite; the last moves fastest."""
        return _grid(self.parameters, chosen or {})

    def size(self, chosen: Mapping[str, Value] | None = None) -> int | None:
        """How many points have these values; None if a continuous range is open there."""
        return _size(self.parameters, chosen or {}, self.owners)

    def n_left(self, chosen: Mapping[str, Value], known: Collection[Point]) -> int | None:
        """How many points have these values and are not known; None if there is no end of them."""
        size = self.size(chosen)
        return None if size is None else size - sum(chosen.items() <= point for point in known)

    def to_overrides(self, point: Mapping[str, Value]) -> list[str]:
        """The overrides that set a point."""
        return [f"{p.prefix}{p.key}={point[p.key]}" for p in self.active(point) if p.key in point]

    def to_json(self) -> tuple[dict[str, Any], ...]:
        """The parameters as plain data, for the study's record."""
        return tuple(
            {**vars(p), "distribution": distribution_to_json(p.distribution)}
            for p in self.parameters
        )

    @classmethod
    def from_json(cls, data: Iterable[Mapping[str, Any]], fixed: Iterable[str]) -> Space:
        """The space of a study's record."""
        parameters = (
            Parameter(
                **{
                    **item,
                    "distribution": json_to_distribution(item["distribution"]),
                    "owner": tuple(item["owner"]) if item["owner"] else None,
                }
            )
            for item in data
        )
        return cls(tuple(parameters), tuple(fixed))


def _grid(
    parameters: Sequence[Parameter], point: Mapping[str, Value]
) -> Iterator[dict[str, Value]]:
    if not parameters:
        yield dict(point)
        return
    first, rest = parameters[0], parameters[1:]
    if first.key in point or not first.is_active(point):
        yield from _grid(rest, point)
        return
    for value in first.values():
        yield from _grid(rest, {**point, first.key: value})


def _size(
    parameters: Sequence[Parameter], point: Mapping[str, Value], owners: set[str]
) -> int | None:
    """Count without listing: only groups that own parameters are followed choice by choice."""
    n = 1
    for i, p in enumerate(parameters):
        if p.key in point or not p.is_active(point):
            continue
        if p.key in owners:
            parts = [_size(parameters[i + 1 :], {**point, p.key: v}, owners) for v in p.values()]
            sizes = [part for part in parts if part is not None]
            return n * sum(sizes) if len(sizes) == len(parts) else None
        size = p.size()
        if size is None:
            return None
        n *= size
    return n
