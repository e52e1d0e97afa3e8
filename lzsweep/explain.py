"""What is wrong with a configuration, in words: rule, value, place, next step."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from hydra._internal.utils import _locate  # as `get_object`, which also logs what it raises
from hydra.errors import MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    ValidationError,
)

from lzsweep.config import PRECISIONS, Data, Network, Trainer, conf_dir, make_loader
from lzsweep.errors import nearest

_KNOWN_PACKAGES = ("lzsweep", "torch", "pytorch_lightning", "torchmetrics")
_KINDS = {"Float": "a number", "Integer": "a whole number", "bool": "true or false"}
_MANY = 12
"""Keys that are told one by one, at most."""


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
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.full_key:
        return _unknown_key(cause)
    if isinstance(cause, ValidationError) and (told := _wrong_type(cause)):
        place = re.match(r"In '([^']+)'", str(error))
        return told + (f" in {place[1]}" if place else "")
    text = str(error)
    if "Ambiguous value" in text:
        override = text.split("'")[1]
        return f"{override} holds several values, which only a sweep takes: add -m, or quote them"
    lines = [*text.splitlines(), *str(cause or "").splitlines()]
    noise = ("full_key:", "object_type=", "reference_type=", "See https", "Config search path:")
    kept = [t for line in lines if (t := line.strip()) and not t.startswith((*noise, "provider="))]
    return ": ".join(dict.fromkeys(kept)) + "; see `lzsweep --help`"


def _unknown_key(cause: ConfigAttributeError | ConfigKeyError) -> str:
    key = str(cause.full_key)
    parent, _, name = key.rpartition(".")
    node = cause.parent_node
    siblings = [str(k) for k in node] if isinstance(node, DictConfig) else []
    siblings = [k for k in siblings if not k.startswith("_")]
    if near := difflib.get_close_matches(name, siblings, n=1):
        hint = f"did you mean {parent}{'.' * bool(parent)}{near[0]}?"
    elif near := difflib.get_close_matches(name, elsewhere := _elsewhere(), n=1, cutoff=0.8):
        hint = f"did you mean {elsewhere[near[0]]}?"
    elif parent and 0 < len(siblings) <= _MANY:
        hint = f"the keys of {parent} are {', '.join(siblings)}"
    else:
        hint = "see all: lzsweep --cfg job"
    return f"{key} is not a key of the configuration; {hint}, or add it with +{key}=..."


def _elsewhere() -> dict[str, str]:
    """The last word of each key -> the first key that ends in it."""
    return {key.rpartition(".")[2]: key for key in reversed(known_keys())}


def _wrong_type(cause: ValidationError) -> str:
    """What a value must be, where that can be said; else nothing."""
    text = str(cause).splitlines()[0]
    if "is not Optional" in text:
        return f"{cause.full_key} must have a value, but got null"
    found = re.fullmatch(
        r"Value '(.*)' (?:of type '(\w+)' could not be converted to (Float|Integer)"
        r"|is not a valid (bool) \(type (\w+)\))",
        text,
    )
    if not found:
        return ""
    value, kind, wanted = found[1], found[2] or found[5], found[3] or found[4]
    shown = repr(value) if kind == "str" else value
    return f"{cause.full_key} must be {_KINDS[wanted]}, but got {shown}"


def _unreadable(error: OverrideParseException) -> str:
    """What keeps an override from being read, without the words of its grammar."""
    text, said = error.override, error.message
    if "=" not in text and not text.startswith("~"):
        return f"an override must be key=value, but got {text!r}"
    if fault := _unbalanced(text):
        return f"{text} must be complete, but {fault}"
    if found := re.search(r"while evaluating '.*?': (.*?)\n(?:Available: (.*?)\n)?", said):
        known = f"; there are {found[2].replace(',', ', ')}" if found[2] else ""
        return f"{text} must be a value or a sweep of them, but: {found[1]}{known}"
    mark = re.search(r"\n( *)\^", said)
    found = re.search(r"(?:extraneous|mismatched) input '(.*?)' expecting|at input '(.*)'", said)
    if mark:
        wrong = repr(text[len(mark[1]) - len("LexerNoViableAltException: ") :][:1])
    else:
        wrong = repr(found[1] or found[2]) if found else "a part of it"
    where = "it ends too early" if wrong == "'<EOF>'" else f"{wrong} cannot stand there"
    return f"{text} must be key=value, but {where}; a text with signs in it needs quotes"


def _unbalanced(text: str) -> str:
    """Which bracket or quote has no partner."""
    partners = {"(": ")", "[": "]", "{": "}"}
    todo: list[str] = []
    quote = ""
    for before, sign in zip(f" {text}", text, strict=False):
        if quote:
            quote = "" if sign == quote and before != "\\" else quote
        elif sign in "'\"":
            quote = sign
        elif sign in partners:
            todo.append(sign)
        elif sign in partners.values() and (not todo or partners[todo.pop()] != sign):
            return f"nothing opens its {sign}"
    if quote:
        return f"its {quote} is not closed"
    return f"its {todo[-1]} is not closed; add {partners[todo[-1]]}" if todo else ""
