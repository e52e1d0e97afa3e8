"""The search space: Hydra's sweep syntax as Optuna distributions, and back as overrides.

Every value of a parameter is kept in the form that goes behind `key=` of an override: numbers and
booleans as they are, anything else as its override text (`small`, `"a b"`, `[64,128]`, `null`).
So what Optuna stores, what people read and what Hydra composes are the same thing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

from lzsweep.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from optuna.distributions import BaseDistribution

Value = str | int | float | bool


@dataclass(frozen=True)
class Space:
    """A parsed command line: what is searched, what stays fixed.

    Attributes:
        parameters: parameter name (an absolute config key or a group) -> Optuna distribution.
        fixed: overrides that hold for every trial, in the order given.
        texts: parameter name -> the sweep as it was written (`tag(log,interval(1e-4,1e-1))`).
        is_grid: no parameter is an interval, so the sweep is the full grid.
    """

    parameters: Mapping[str, BaseDistribution]
    fixed: tuple[str, ...]
    texts: Mapping[str, str]
    is_grid: bool

    def grid(self) -> Iterator[dict[str, Value]]:
        """Each combination of a discrete space once, the last parameter moving fastest."""
        columns = [_choices(d) for d in self.parameters.values()]
        for point in itertools.product(*columns):
            yield dict(zip(self.parameters, point, strict=True))

    def grid_size(self) -> int:
        return math.prod(len(_choices(d)) for d in self.parameters.values())


def to_overrides(params: Mapping[str, Value]) -> list[str]:
    """The overrides that set a trial's parameters."""
    return [f"{key}={value}" for key, value in params.items()]


def parse_space(
    arguments: Sequence[str], study_space: Mapping[str, Any], config_loader: ConfigLoader
) -> Space:
    """Split a sweep's command line into parameters and fixed overrides.

    Args:
        arguments: the task overrides of `lzsweep -m`, sweeps among them.
        study_space: `study.space` of the config: key -> sweep text; the command line wins.
        config_loader: expands `glob(...)` over the options of a group.

    Raises:
        ConfigError: everything wrong with the space, at once.
    """
    problems: list[str] = []
    parameters: dict[str, BaseDistribution] = {}
    texts: dict[str, str] = {}
    fixed: list[str] = []
    is_grid = True
    parser = OverridesParser.create(config_loader=config_loader)
    given = parser.parse_overrides(list(arguments))
    typed = {override.key_or_group for override in given}
    for key, text in study_space.items():
        if key not in typed:
            given += parser.parse_overrides([f"{key}={text}"])
    # As in Hydra the last word on a key holds, be it a value or a sweep.
    for override in {o.get_key_element(): o for o in given}.values():
        if not override.is_sweep_override():
            fixed.append(override.input_line or "")
            continue
        name = override.get_key_element()
        try:
            parameters[name] = _distribution(override)
            texts[name] = override.get_value_string()
            is_grid &= not override.is_interval_sweep()
        except ValueError as error:
            problems.append(f"{override.input_line}: {error}")
    if problems:
        raise ConfigError(problems)
    return Space(parameters, tuple(fixed), texts, is_grid)


def _distribution(override: Override) -> BaseDistribution:
    from hydra_plugins.hydra_optuna_sweeper._impl import (
        create_optuna_distribution_from_override,
    )
    from optuna.distributions import CategoricalDistribution

    if override.is_choice_sweep():
        choices = [_encode(value) for value in override.sweep_iterator()]
        if not choices:
            raise ValueError("a choice needs at least one value; `glob` matched no option")
        return CategoricalDistribution(list(dict.fromkeys(choices)))
    if override.is_interval_sweep():
        _check_interval(override.value())
    distribution: BaseDistribution = create_optuna_distribution_from_override(override)
    return distribution


def _check_interval(interval: Any) -> None:
    assert isinstance(interval, IntervalSweep)
    low, high = interval.start, interval.end
    assert low is not None
    assert high is not None
    if low > high:
        raise ValueError(
            f"`low <= high` must hold for an interval, but got low={low}, high={high};"
            " swap the two"
        )
    if "log" in interval.tags and low <= 0:
        raise ValueError(
            f"`low > 0` must hold for a log interval, but got low={low};"
            " raise it or take the tag off"
        )
    if unknown := interval.tags - {"log"}:
        raise ValueError(f"unknown tag {', '.join(sorted(unknown))}; the one known tag is `log`")


def _encode(value: Any) -> Value:
    if isinstance(value, bool | int | float):
        return value
    return Override._get_value_element_as_str(value)


def _choices(distribution: BaseDistribution) -> Sequence[Value]:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices  # type: ignore[return-value]  # _encode made no None
    if isinstance(distribution, IntDistribution):
        return range(distribution.low, distribution.high + 1, distribution.step)
    assert isinstance(distribution, FloatDistribution)
    assert distribution.step is not None, "only an interval has no step, and it makes no grid"
    n = round((distribution.high - distribution.low) / distribution.step) + 1
    return [distribution.low + i * distribution.step for i in range(n)]
