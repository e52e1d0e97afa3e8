"""Known-good points: what `study.enqueue` names, as points of the search space.

An entry is a mapping (`{lr: 0.01, network.blocks: 2}`) or a file that holds one; a `best.yaml` is
such a file, its defaults list names the groups. A point may leave parameters open, which the
sampler chooses; what it sets besides must be as the sweep keeps it anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna.distributions import CategoricalDistribution, IntDistribution

from lzsweep.errors import UserError
from lzsweep.explain import explain
from lzsweep.sweep.composer import Composer
from lzsweep.sweep.space import Parameter, Space, Value
from lzsweep.sweep.syntax import read_value


def read_points(
    entries: Sequence[Any], space: Space, composer: Composer
) -> tuple[list[dict[str, Value]], list[str]]:
    """The points of `study.enqueue` in their order, and everything wrong with them."""
    points: list[dict[str, Value]] = []
    problems: list[str] = []
    for n, entry in enumerate(entries):
        place = f"study.enqueue[{n}]"
        if isinstance(entry, str):
            place += f" ({entry})"
        try:
            values = dict(_flatten(_read(entry, place), space))
            point, faults = _to_point(values, space)
            faults += _fixed_faults(values, point, space, composer)
        except UserError as error:
            problems.append(str(error))
        except (HydraException, OmegaConfBaseException) as error:
            problems.append(f"{place}: {explain(error)}")
        else:
            points.append(point)
            problems += [f"{place}: {fault}" for fault in faults]
    return points, problems


def _read(entry: Any, place: str) -> dict[str, Any]:
    """The entry as a mapping, groups of a defaults list under their own names."""
    data = OmegaConf.to_container(entry) if OmegaConf.is_config(entry) else entry
    if isinstance(entry, str):
        try:
            data = OmegaConf.to_container(OmegaConf.load(entry))
        except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
            line = " ".join(str(error).split())
            raise UserError(
                f"{place}: a point must be a mapping or a YAML file of one, but {line};"
                " name a best.yaml, or write {key: value}"
            ) from error
    if not isinstance(data, Mapping):
        raise UserError(
            f"{place}: a point must be a mapping or a YAML file of one, but got {data!r};"
            " name a best.yaml, or write {key: value}"
        )
    values = {str(key): value for key, value in data.items() if key != "defaults"}
    groups: dict[str, Any] = {}
    for item in data.get("defaults", ()):
        if isinstance(item, Mapping):
            for name, option in item.items():
                groups[str(name).removeprefix("override ").strip().lstrip("/")] = option
    # A group and its keys may both be given: `network: big` and `network: {blocks: 4}`.
    return {**{f"{name}\0": option for name, option in groups.items()}, **values}


def _flatten(
    values: Mapping[str, Any], space: Space, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Dotted keys down to what is searched, or to the last key."""
    for key, value in values.items():
        name = f"{prefix}{key.removesuffix(chr(0))}"
        is_searched = any(
            p.key == name and find_value(p, value) is not None for p in space.parameters
        )
        if isinstance(value, Mapping) and value and not is_searched:
            yield from _flatten({str(k): v for k, v in value.items()}, space, f"{name}.")
        else:
            yield name, value


def find_value(parameter: Parameter, value: Any) -> Value | None:
    """A value of YAML as the parameter keeps it; None if it is none of its values."""
    d = parameter.distribution
    if isinstance(d, CategoricalDistribution):
        for choice in parameter.values():
            if _is_same(read_value(choice), value):
                return choice
        return None
    if not parameter.holds(value):
        return None
    return int(value) if isinstance(d, IntDistribution) else float(value)


def _is_same(a: Any, b: Any) -> bool:
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def _to_point(values: Mapping[str, Any], space: Space) -> tuple[dict[str, Value], list[str]]:
    point: dict[str, Value] = {}
    faults: list[str] = []
    for p in space.active(point):
        if p.key not in values:
            continue
        value = find_value(p, values[p.key])
        if value is None:
            faults.append(
                f"a point must lie in the search space, but {p.key}={values[p.key]} is outside of"
                f" {p.text}; change the point or the sweep"
            )
        else:
            point[p.key] = value
    return point, faults


def _fixed_faults(
    values: Mapping[str, Any], point: Mapping[str, Value], space: Space, composer: Composer
) -> list[str]:
    """What the values set beside the point, unless the sweep keeps it at just that."""
    searched = {p.key for p in space.active(point)}
    rest = {key: value for key, value in values.items() if key not in searched}
    faults = []
    for p in space.parameters:
        if p.key in rest and p.owner and p.owner[0] not in values:
            del rest[p.key]
            faults.append(
                f"{p.key} is searched only with {'='.join(p.owner)}, but the point does not say"
                f" {p.owner[0]}; add it"
            )
    if not rest:
        return faults
    composed = composer.parts([*space.fixed, *space.to_overrides(point)])
    config = OmegaConf.create(dict(composed.plain))
    for key, value in rest.items():
        if key in composed.choices:
            current: Any = composed.choices[key]
        elif not _has(composed.plain, key):
            faults.append(f"{key} is not a key of the configuration; take it out of the point")
            continue
        else:
            current = OmegaConf.select(config, key)
            current = OmegaConf.to_container(current) if OmegaConf.is_config(current) else current
            value = _resolved(config, key, value)
        if not _is_same(current, value):
            faults.append(
                f"a point may set what is searched, but {key}={value} is none of it and the sweep"
                f" keeps {key}={current}; search {key}, set it to {value}, or take it out"
            )
    return faults


def _has(config: Mapping[str, Any], key: str) -> bool:
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True


def _resolved(config: Any, key: str, value: Any) -> Any:
    """A value of a file, its interpolations resolved in the sweep's own configuration."""
    changed = OmegaConf.merge(config)
    OmegaConf.update(changed, key, value, force_add=True)
    value = OmegaConf.select(changed, key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
