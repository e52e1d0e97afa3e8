"""Hydra's sweep syntax, read with its own meaning: command line, `study.space`, groups' `space:`.

The command line wins over `study.space`, and that over the sub-space of a group's option. The
sub-space of an option that is fixed is simply part of the space; that of an option which a sweep
chooses belongs to this choice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
    RangeSweep,
)
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from lzsweep.sweep.space import Parameter, Space, Value

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader

ReadSpaces = Callable[[Sequence[str]], Mapping[str, Mapping[str, Any]]]
"""Composes overrides; group -> key -> sweep text of the options that they choose."""
READ_ONCE = ("study", "worker", "tracking", "objective", "hydra")
"""Where the keys lie that are read once for the whole sweep, so that no trials differ in them."""


def parse_space(
    arguments: Sequence[str],
    study_space: Mapping[str, Any],
    loader: ConfigLoader,
    read_spaces: ReadSpaces,
) -> tuple[Space, list[str]]:
    """Split a sweep's command line into parameters and fixed overrides; add the sub-spaces.

    Args:
        arguments: the task overrides of `lzsweep -m`, sweeps among them.
        study_space: `study.space` of the config: key -> sweep text.
        loader: expands `glob(...)` over the options of a group, and knows what is a group.
        read_spaces: reads the sub-spaces of options. What does not compose is left out here;
            whoever checks the points says so.

    Returns:
        The space and everything wrong with it.
    """
    reader = _Reader(loader, read_spaces, OverridesParser.create(config_loader=loader))
    reader.read_given(arguments, study_space)
    reader.read_owned()
    return Space(tuple(reader.parameters), tuple(reader.fixed)), reader.problems


def read_value(text: object) -> Any:
    """What Hydra makes of an override's value: numbers, strings, lists, dicts."""
    return _plain_parser().parse_overrides([f"x={text}"])[0].value()


def first_value(parameter: Parameter) -> Value:
    """A value that shows whether the parameter composes: inside of a continuous range."""
    d = parameter.distribution
    if isinstance(d, FloatDistribution) and d.step is None and not d.single():
        if d.log:
            return float(d.low * (d.high / d.low) ** 0.618)
        return d.low + 0.618 * (d.high - d.low)
    if parameter.is_interval:
        return d.low  # type: ignore[attr-defined,no-any-return]  # an interval of integers
    return parameter.values()[0]


@dataclass
class _Reader:
    loader: ConfigLoader
    read_spaces: ReadSpaces
    parser: OverridesParser
    parameters: list[Parameter] = field(default_factory=list)
    fixed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    given: set[str] = field(default_factory=set)  # keys that people set, which no group may own
    sources: dict[str, str] = field(default_factory=dict)  # key -> the group that owns it

    def read_given(self, arguments: Sequence[str], study_space: Mapping[str, Any]) -> None:
        overrides = self.parser.parse_overrides(list(arguments))
        typed = {_key(override) for override in overrides}
        for key, value in study_space.items():
            parsed = self._parse(key, value, f"study.space.{key}")
            new = [o for o in parsed if _key(o) not in typed]
            overrides += [o for o in new if self._may_vary(o, f"study.space: {o.input_line}")]
        # As in Hydra the last word on a key holds, be it a value or a sweep; an addition and a
        # change do not replace each other, nor does an extension of a list anything.
        kept: list[Override] = []
        for override in reversed(overrides):
            names = {o.get_key_element() for o in kept}
            if override.is_list_extend() or override.get_key_element() not in names:
                kept.insert(0, override)
        for i, override in enumerate(kept):
            self.given.add(_key(override))
            later = {_key(o) for o in kept[i + 1 :]}
            if not override.is_sweep_override():
                self.fixed.append(override.input_line or "")
            elif _key(override) not in later:
                self._add(override, str(override.input_line))

    def read_owned(self) -> None:
        """Add what the options own: those of the searched groups, then those of the fixed."""
        done: set[str] = set()
        while True:
            groups = [p for p in self.parameters if p.name not in done and self._is_group(p)]
            for group in groups:
                done.add(group.name)
                for option in group.values():
                    chosen = {**_context(self.parameters, group), group.key: option}
                    texts = self._spaces(chosen).get(group.key, {})
                    self._add_owned(group.key, str(option), texts, is_fixed=False)
            if groups:
                continue
            n_before = len(self.parameters)
            searched = {p.key for p in self.parameters}
            for group_key, texts in self._spaces({}).items():
                if group_key not in searched and group_key not in done:
                    done.add(group_key)
                    self._add_owned(group_key, "", texts, is_fixed=True)
            if len(self.parameters) == n_before:
                return

    def _add_owned(self, group: str, option: str, texts: Any, *, is_fixed: bool) -> None:
        place = f"the space of {group}={option}" if option else f"the space of {group}"
        if not isinstance(texts, Mapping):
            self.problems.append(f"{place} must map keys to sweeps, but got {texts!r}")
            return
        for key, text in texts.items():
            for override in self._parse(key, text, place):
                key_ = _key(override)
                if key_ in self.given:
                    continue
                source = self.sources.setdefault(key_, group)
                if source != group:
                    self.problems.append(
                        f"one group at most may own the space of a key, but {source} and {group}"
                        f" both own {key_}; take it out of one, or set it in study.space"
                    )
                elif override.is_delete() or override.package or override.is_list_extend():
                    self.problems.append(
                        f"{place}: {override.input_line} searches nothing; a space holds keys and"
                        " their sweeps"
                    )
                else:
                    owner = None if is_fixed else (group, option)
                    self._add(override, f"{place}: {override.input_line}", owner)

    def _add(self, override: Override, place: str, owner: tuple[str, str] | None = None) -> None:
        if override.is_delete():
            self.problems.append(
                f"{place}: a deletion cannot be searched; write ~{_key(override)}"
            )
            return
        if not self._may_vary(override, place):
            return
        try:
            distribution = _distribution(override)
        except (ValueError, OverflowError, HydraException) as error:
            self.problems.append(f"{place}: {error}")
            return
        sweep = override.value()
        self.parameters.append(
            Parameter(
                _key(override),
                distribution,
                override.get_value_string(),
                prefix="+" * (override.is_add() + 2 * override.is_force_add()),
                owner=owner,
                is_interval=override.is_interval_sweep(),
                is_reversed=isinstance(sweep, RangeSweep) and float(sweep.step) < 0,
            )
        )

    def _may_vary(self, override: Override, place: str) -> bool:
        """Whether a trial reads the key at all; if not, that is a problem."""
        where = override.package or override.key_or_group
        root = re.split(r"[./]", where)[0]
        if root in READ_ONCE:
            self.problems.append(
                f"{place}: what is searched must be read by each trial, but {root} is read once"
                f" for the whole sweep; take {_key(override)} out of the search and set it on the"
                " command line, in a sweep for each value"
            )
        return root not in READ_ONCE

    def _parse(self, key: str, value: Any, place: str) -> list[Override]:
        text = f"{key}={_text(value)}"
        if key.startswith("~") and value is None:
            text = key
        try:
            return self.parser.parse_overrides([text])
        except HydraException as error:
            self.problems.append(f"{place}: {text}: {str(error).splitlines()[0]}")
            return []

    def _is_group(self, parameter: Parameter) -> bool:
        return bool(self.loader.get_group_options(parameter.key.partition("@")[0]))

    def _spaces(self, chosen: Mapping[str, Value]) -> Mapping[str, Mapping[str, Any]]:
        space = Space(tuple(self.parameters))
        try:
            return self.read_spaces([*self.fixed, *space.to_overrides(fill(space, chosen))])
        except (HydraException, OmegaConfBaseException):
            return {}


def fill(space: Space, chosen: Mapping[str, Value]) -> dict[str, Value]:
    """A whole point with these choices and first values elsewhere."""
    point: dict[str, Value] = {}
    for p in space.active(point):
        point[p.key] = chosen[p.key] if p.holds(chosen.get(p.key)) else first_value(p)
    return point


def probe_points(space: Space) -> Iterator[dict[str, Value]]:
    """Points that hold each choice of each categorical once, the rest at its first value."""
    yield fill(space, {})
    for parameter in space.parameters:
        if isinstance(parameter.distribution, CategoricalDistribution):
            for choice in parameter.values()[0 if parameter.owner else 1 :]:
                yield fill(space, {**_context(space.parameters, parameter), parameter.key: choice})


def _context(parameters: Sequence[Parameter], parameter: Parameter) -> dict[str, Value]:
    """The choices under which a parameter exists."""
    if parameter.owner is None:
        return {}
    group, option = parameter.owner
    owner = next(p for p in parameters if p.key == group and p.holds(option))
    return {**_context(parameters, owner), group: option}


@cache
def _plain_parser() -> OverridesParser:
    return OverridesParser.create()


def _key(override: Override) -> str:
    """The key without what is to be done with it."""
    package = f"@{override.package}" if override.package else ""
    return f"{override.key_or_group}{package}"


def _text(value: Any) -> str:
    """A value of YAML as an override's; a text is a sweep already."""
    return value if isinstance(value, str) else Override._get_value_element_as_str(value)


def _distribution(override: Override) -> BaseDistribution:
    from hydra_plugins.hydra_optuna_sweeper._impl import (
        create_optuna_distribution_from_override,
    )

    if not override.is_sweep_override():  # a single value in a sub-space
        return CategoricalDistribution(_encode_all([override._value]))
    if override.is_choice_sweep():
        choices = list(override.sweep_iterator())
        if not choices:
            raise ValueError("a choice needs at least one value; `glob` matched no option")
        return CategoricalDistribution(_encode_all(choices))
    if override.is_range_sweep():
        _check_range(override.value())
    if override.is_interval_sweep():
        _check_interval(override.value())
    distribution: BaseDistribution = create_optuna_distribution_from_override(override)
    return distribution


def _check_range(numbers: Any) -> None:
    assert isinstance(numbers, RangeSweep)
    given = {"start": numbers.start, "stop": numbers.stop, "step": numbers.step}
    if not all(math.isfinite(number or 0) for number in given.values()):
        got = ", ".join(f"{name}={number}" for name, number in given.items())
        raise ValueError(
            f"a range must have finite ends and a finite step, but got {got}; set them"
        )


def _check_interval(interval: Any) -> None:
    assert isinstance(interval, IntervalSweep)
    low, high = interval.start, interval.end
    assert low is not None
    assert high is not None
    if not math.isfinite(high - low):
        raise ValueError(
            f"an interval must have finite ends and a finite width, but got low={low},"
            f" high={high}; set both ends"
        )
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
        hint = "; for integers write int(interval(a,b))" if "int" in unknown else ""
        raise ValueError(
            f"unknown tag {', '.join(sorted(unknown))}; the one known tag is `log`{hint}"
        )


def quoted(text: str) -> str:
    """A text as a value in Hydra's syntax, whatever stands in it."""
    return QuotedString(text, Quote.single).with_quotes()


def _encode_all(values: Sequence[Any]) -> list[Value]:
    """The choices, each once; as texts where Python would take two of them for the same."""
    choices = list({(type(c), c): c for c in map(_encode, values)}.values())
    return choices if len(set(choices)) == len(choices) else [str(c) for c in choices]


def _encode(value: Any) -> Value:
    if isinstance(value, bool | int) or (isinstance(value, float) and abs(value) < float("inf")):
        return value
    if isinstance(value, str):
        if "${" in value:
            return value  # an interpolation, which escaping would break
        text = Override._get_value_element_as_str(value)
        # `str(1)` and `json_str([1])` made a text that would come back as something else.
        is_same = bool(value) and read_value(text) == value
        return text if is_same else quoted(value)
    return Override._get_value_element_as_str(value)
