"""Composes configurations that differ in a few overrides: of trial after trial, of each choice.

Hydra takes a tenth of a second and more to find, read and merge the files of a configuration.
What they say does not depend on the values that are set, only on the options that are chosen, so
it is done once for each choice, and the values are set in a copy, by Hydra's own hand.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode

from lzsweep.config import resolve, take_choices

_Merged = tuple[bytes, Mapping[str, str | None], Mapping[str, Any]]


@dataclass(frozen=True)
class Composed:
    """A composed configuration.

    Attributes:
        plain: resolved plain data, without Hydra's own node and without sub-spaces.
        spaces: group -> key -> sweep text: what the chosen options own.
        choices: group -> option.
    """

    plain: Mapping[str, Any]
    spaces: Mapping[str, Any]
    choices: Mapping[str, str | None]


class Composer:
    """What Hydra composes, for one set of overrides after another; any thread may ask.

    Args:
        loader: over the config trees, frozen ones or the user's own.
        fixed: overrides that hold each time.
        config_name: the primary configuration.
    """

    def __init__(
        self, loader: ConfigLoaderImpl, fixed: Sequence[str] = (), config_name: str = "config"
    ) -> None:
        self._loader = loader
        self._fixed = tuple(fixed)
        self._config_name = config_name
        self._parser = OverridesParser.create(config_loader=loader)
        self._is_group: dict[str, bool] = {}  # key of an override -> whether it chooses an option
        self._merged: dict[tuple[str, ...], _Merged] = {}  # options chosen -> configuration
        self._lock = threading.Lock()  # Hydra's registries are not made for threads

    def __call__(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Compose and resolve into plain data, without Hydra's own node.

        Raises:
            HydraException, OmegaConfBaseException: an override or an interpolation is wrong.
        """
        return dict(self.parts(overrides).plain)

    def parts(self, overrides: Sequence[str]) -> Composed:
        """The same, with the options that were chosen and the sub-spaces that they own.

        Raises:
            HydraException, OmegaConfBaseException: an override or an interpolation is wrong.
        """
        with self._lock:
            parsed = self._parser.parse_overrides(list(overrides))
            values = [o for o in parsed if not self._chooses(o)]
            chosen = tuple(str(o.input_line) for o in parsed if self._chooses(o))
            if chosen not in self._merged:
                self._merged[chosen] = self._merge(chosen)
            text, choices, spaces = self._merged[chosen]
            config = pickle.loads(text)
            ConfigLoaderImpl._apply_overrides_to_config(values, config)
            return Composed(resolve(config), spaces, choices)

    def _chooses(self, override: Override) -> bool:
        key = override.key_or_group
        if key not in self._is_group:
            self._is_group[key] = bool(self._loader.get_group_options(key))
        return self._is_group[key]

    def _merge(self, chosen: Sequence[str]) -> _Merged:
        config = self._loader.load_configuration(
            self._config_name, [*self._fixed, *chosen], RunMode.RUN
        )
        choices, spaces = take_choices(config)  # with most of it, which is Hydra's own node
        return pickle.dumps(config), choices, spaces  # read again in a sixth of a copy's time
