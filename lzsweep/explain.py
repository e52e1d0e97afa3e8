"""What is wrong with a configuration, in words: rule, value, place, next step."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from hydra._internal.utils import _locate  # as `get_object`, which also logs what it raises
from hydra.errors import MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue

from lzsweep.config import PRECISIONS, Data, Network, Trainer, conf_dir, make_loader
from lzsweep.errors import nearest

_KNOWN_PACKAGES = ("lzsweep", "torch", "pytorch_lightning", "torchmetrics")


def target_problems(config: Mapping[str, Any]) -> list[str]:
    """What a composed configuration gives its targets that they do not take.

    Ours and Lightning's are looked up in the schemas, because to import them takes tens of
    seconds; a user's own are imported and asked for their signature.
    """
    problems: list[str] = []
    if "precision" in config and str(config["precision"]) not in PRECISIONS:
        problems.append(
            f"precision must be one of {', '.join(PRECISIONS)}, but got {config['precision']};"
            f" {nearest(str(config['precision']), PRECISIONS)}"
        )
    todo: list[tuple[str, Any]] = list(config.items())
    while todo:
        key, node = todo.pop()
        if isinstance(node, list):
            todo += [(f"{key}[{n}]", item) for n, item in enumerate(node)]
        if not isinstance(node, Mapping):
            continue
        todo += [(f"{key}.{name}", child) for name, child in node.items()]
        target = str(node.get("_target_", ""))
        for schema in (Network, Data, Trainer):
            if target == schema._target_:
                names = [f.name for f in fields(schema)]
                problems += [
                    f"{key}.{name} is nothing that {target} takes; {nearest(name, names)}"
                    for name in map(str, node)
                    if name not in names
                ]
        if target and target.split(".")[0] not in _KNOWN_PACKAGES:
            problems += _signature_problems(key, target, node)
    return sorted(set(problems))


def _signature_problems(key: str, target: str, node: Mapping[str, Any]) -> list[str]:
    try:
        parameters = inspect.signature(_locate(target)).parameters
    except Exception as error:  # whatever a user's module raises when it is imported
        return [f"{key}: {target} must be importable, but {_why_not(target, error)}"]
    kinds = {p.kind for p in parameters.values()}
    given = {str(name) for name in node} - {"_target_", "_partial_", "_recursive_", "_convert_"}
    problems = []
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        problems += [
            f"{key}.{name} is nothing that {target} takes; {nearest(name, parameters)}"
            for name in sorted(given - set(parameters) - {"_args_"})
        ]
    if not node.get("_partial_") and "_args_" not in node:
        problems += [
            f"{key}.{p.name} is missing, but {target} needs it"
            for p in parameters.values()
            if p.default is p.empty
            and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            and p.name not in given
        ]
    return problems


def _why_not(target: str, error: Exception) -> str:
    """Why a target cannot be imported, in one line, and what to do about it."""
    why = error.__cause__ or error
    module, _, name = target.rpartition(".")
    top = target.split(".")[0]
    if not isinstance(why, ModuleNotFoundError):
        lines = str(why).splitlines()
        shown = lines[-1] if lines else repr(why)
        return f"{shown}; see where: python -c 'import {module or name}'"
    if why.name == top:
        return f"{why}; install it, or export PYTHONPATH=FOLDER, the folder that holds {top}"
    if str(why.name).startswith(f"{top}."):
        return f"there is no {why.name}; correct the name"
    return f"{why}; install that, which {module} imports"


def known_keys() -> list[str]:
    """Every key of the shipped configuration, dotted, for nearest-match hints."""
    keys: list[str] = []
    root = make_loader([f"file://{conf_dir()}"]).load_configuration("config", [], RunMode.RUN)
    todo: list[tuple[str, DictConfig]] = [("", root)]
    while todo:
        prefix, node = todo.pop(0)
        for key in map(str, node):
            keys.append(f"{prefix}{key}")
            child = node._get_node(key)
            if isinstance(child, DictConfig) and not child._is_none() and key != "hydra":
                todo.append((f"{prefix}{key}.", child))
    return keys


def explain(error: Exception) -> str:
    """Say in one line what a Hydra or OmegaConf error means: rule, value, place, next step."""
    cause = error.__cause__
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} must be set, but is not: {error.full_key}=..."
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        options = [str(o) for o in error.options]
        return (
            f"{group}={option}: the options of {group} are {', '.join(options)};"
            f" {nearest(option, options)}"
        )
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.full_key:
        key = f"{cause.full_key!s}"
        return (
            f"{key} is not a key of the configuration;"
            f" {nearest(key, known_keys())}, or add it with +{key}=..."
        )
    text = str(error)
    if "Ambiguous value" in text:
        override = text.split("'")[1]
        return f"{override} holds several values, which only a sweep takes: add -m, or quote them"
    lines = [*text.splitlines(), *str(cause or "").splitlines()]
    noise = ("full_key:", "object_type=", "reference_type=", "See https", "Config search path:")
    kept = [t for line in lines if (t := line.strip()) and not t.startswith((*noise, "provider="))]
    return ": ".join(dict.fromkeys(kept)) + "; see `lzsweep --help`"
