"""The subcommands, a module each noun; `cli.py` hands over when the first word is one of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.plugins import Plugins
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig

from lzsweep.config import OwnConf, conf_dir, register_schemas
from lzsweep.errors import UserError

_OWN_MODULES = ("data", "doctor", "export", "promote", "report", "rerun", "serve", "submit")
NAMES = ("list", "status", "best", "watch", "stop", "resume", "sync", *_OWN_MODULES)
"""What may be the first word of a command line."""

STUDIES_FILE = "sqlite:///lzsweep.db"
MLFLOW_FILE = "sqlite:///mlflow.db"
"""Where studies and runs are, unless somebody says otherwise: in the working folder."""

_INTERRUPTED = 130  # what typer makes of Ctrl-C

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback()
def _commands() -> None:
    """Look at what was trained, and take it along."""  # without this, typer drops a lone name


class Format(StrEnum):
    """How a listing is printed."""

    table = "table"
    json = "json"


Output = Annotated[Format, typer.Option("--format", help="A table for people, JSON for scripts.")]
Storage = Annotated[str, typer.Option(envvar="LZSWEEP_STORAGE", help="URL of the study database.")]
Tracking = Annotated[
    str, typer.Option("--uri", envvar="MLFLOW_TRACKING_URI", help="The MLflow server.")
]


def run_command(arguments: Sequence[str], run_hydra: Callable[[list[str]], int]) -> int:
    """Run a subcommand and return its exit code; typer itself words what is wrong with usage.

    Args:
        arguments: the command line, subcommand first.
        run_hydra: runs a command line of Hydra's, for subcommands that stand for one.
    """
    own = arguments[0] if arguments[0] in _OWN_MODULES else "study"
    import_module(f"lzsweep.commands.{own}")
    try:
        app(list(arguments), prog_name="lzsweep", obj=run_hydra)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            raise KeyboardInterrupt from end
        return int(end.code or 0)
    return 0


def compose_sweep(arguments: Sequence[str]) -> DictConfig:
    """The configuration of a command line of `lzsweep -m`, Hydra's own node in it, unsearched.

    Its configs are looked for where Hydra will look for them, in the same order.

    Raises:
        UserError: the folder of `--config-dir` is not there.
        HydraException, OmegaConfBaseException: something in it is wrong.
    """
    setup_globals()  # `${now:}` and the like, which folders are made of
    register_schemas()
    Plugins.instance().register(OwnConf)
    typed = get_args_parser().parse_args(arguments)
    search_path = create_config_search_path(str(conf_dir()))
    if typed.config_dir:
        folder = Path(typed.config_dir).absolute()
        if not folder.is_dir():
            raise UserError(f"the folder of --config-dir must exist, but {folder} does not")
        last = SearchPathQuery(provider="schema")
        search_path.prepend("command-line", f"file://{folder}", anchor=last)
    loader = ConfigLoaderImpl(search_path)
    name = typed.config_name or "config"
    return loader.load_configuration(name, typed.overrides, RunMode.MULTIRUN)


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False))
