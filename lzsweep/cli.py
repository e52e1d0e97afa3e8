"""The one door: `lzsweep ...` is a Hydra command line, or a subcommand when its first word is one.

Also the one place that turns errors into one line and an exit code: 0 done, 1 something failed,
2 the user's mistake. Nothing heavy is imported here: `--help` and completion answer in a second.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import hydra
from hydra._internal import utils as hydra_flags
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lzsweep.commands import NAMES, run_command
from lzsweep.config import OwnConf, conf_dir, register_schemas
from lzsweep.errors import LzsweepError, UserError, nearest
from lzsweep.explain import explain
from lzsweep.sweep.plugin import PullSweeper
from lzsweep.tracking.client import redact

_failed: list[LzsweepError | OmegaConfBaseException] = []


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns:
        The exit code: 0 done, 1 something failed, 2 the user's mistake.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _refuse_unknown_word(arguments)
        _refuse_passwords(arguments)
        if arguments == ["--version"]:
            print(f"lzsweep {metadata.version('lzsweep')}")
            return 0
        if _is_command(arguments):
            return run_command(arguments, _run_hydra)
        return _run_hydra(arguments)
    except LzsweepError as error:
        return _fail(str(error), error.exit_code)
    except (HydraException, OmegaConfBaseException) as error:
        return _fail(explain(error), UserError.exit_code)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        if not _is_about_our_folders(error, arguments):
            raise  # a user's module, or ours: the traceback says which
        return _fail(
            f"the folder must be writable, but {Path(error.filename).absolute()}:"
            f" {error.strerror}; change to another folder"
            f"{'' if _is_command(arguments) else ' or set hydra.run.dir'}",
            UserError.exit_code,
        )
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" ({error.filename})" if error.filename else ""
        return _fail(
            f"the disk is full: {error.strerror}{where}; make room there and type the"
            " same command again",
            1,
        )
    except ValueError as error:
        if not _is_about_flags(error):
            raise
        return _fail(
            f"{error}; for the configuration of a training: lzsweep --cfg job",
            UserError.exit_code,
        )
    except KeyboardInterrupt:
        return _fail("stopped by Ctrl-C", 1)
    except Exception as error:
        # Whoever meets one has imported this; for all others it would take seconds.
        storage = sys.modules.get("lzsweep.sweep.storage")
        if storage is None or not isinstance(error, storage.DATABASE_ERRORS):
            raise
        return _fail(
            f"the study database must answer, but says: {storage.first_line(error)}; its workers"
            " wait for it; see that it runs and type the same command again",
            1,
        )


def task(cfg: DictConfig) -> object:
    """What a Hydra job does: be a worker of a study, or one plain training.

    A sweeper that is not ours (`hydra/sweeper=basic|optuna`) sets no `worker.join`, so each of its
    jobs is a training of its own and returns the objective.
    """
    if cfg.worker.join is not None:
        from lzsweep.sweep.worker import join

        join(cfg)
        return None
    from lzsweep.sweep.source import settle
    from lzsweep.train.run import run

    try:
        settle(cfg)
        return run(cfg)
    except (LzsweepError, OmegaConfBaseException) as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        _failed.append(error)  # Hydra would print the overrides and half a traceback first
        if not isinstance(error, LzsweepError) or isinstance(error, UserError):
            _clear_output()
        return None


def _is_command(arguments: Sequence[str]) -> bool:
    return bool(arguments) and arguments[0] in NAMES


def _run_hydra(arguments: list[str]) -> int:
    register_schemas()
    for plugin in (OwnConf, PullSweeper):  # from a checkout no entry point registers them
        Plugins.instance().register(plugin)
    # Hydra prints its own errors and exits with 1; this makes it leave them to us.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    argv, sys.argv = sys.argv, ["lzsweep", *arguments]
    try:
        hydra.main(config_path=str(conf_dir()), config_name="config")(task)()
    finally:
        sys.argv = argv
    if _failed:
        raise _failed.pop()
    return 0


def _clear_output() -> None:
    """Take away the folder of a training that never began, if it holds nothing of it.

    Only one that has its name from the time of this start: a folder that somebody named may have
    been there before.
    """
    hydra = HydraConfig.get()
    folder, root = Path(hydra.runtime.output_dir), Path(hydra.runtime.cwd) / "outputs"
    is_named = any(word.startswith("hydra.run.dir=") for word in hydra.overrides.hydra)
    if is_named or root not in folder.parents:
        return
    log = folder / "lzsweep.log"  # of conf/hydra/job_logging
    own = folder / str(hydra.output_subdir)
    inside = {*folder.iterdir()}
    if not inside <= {own, log} or any(path.suffix != ".yaml" for path in own.glob("*")):
        return
    with suppress(OSError):  # another start may be making its own beside it
        shutil.rmtree(own, ignore_errors=True)
        log.unlink(missing_ok=True)
        for empty in (folder, *folder.parents):
            empty.rmdir()
            if empty == root:
                break


def _refuse_unknown_word(arguments: Sequence[str]) -> None:
    # `lzsweep statu` would otherwise be told off by the override grammar.
    if (
        arguments
        and re.fullmatch(r"[A-Za-z][A-Za-z_-]*", arguments[0])
        and arguments[0] not in NAMES
    ):
        raise UserError(
            f"the first word must be a command ({', '.join(NAMES)}) or an override"
            f" (key=value), but got {arguments[0]!r}; {nearest(arguments[0].lower(), NAMES)}"
        )


def _refuse_passwords(arguments: Sequence[str]) -> None:
    # What is typed ends in shell histories, process lists, saved configs and names of runs.
    for argument in arguments:
        if re.search(
            r"://[^/?#@:]*:(?!\d+[/?#])[^@]+@|://\S*[?&](password|passwd|pwd)=[^&]", argument
        ):
            raise UserError(
                f"a password must not stand in a command line, but {redact(argument)} holds one;"
                " put it into PGPASSFILE or LZSWEEP_STORAGE, MLFLOW_TRACKING_PASSWORD or"
                " MLFLOW_TRACKING_URI"
            )


def _is_about_flags(error: ValueError) -> bool:
    # Hydra has no error of its own for flags that exclude each other, such as -m and --cfg.
    return _raiser(error) == hydra_flags.__name__


def _raiser(error: BaseException) -> str:
    """The module that raised an error, or that called `pathlib`, which did."""
    frames = traceback.walk_tb(error.__traceback__)
    names = [str(frame.f_globals.get("__name__")) for frame, _ in frames]
    return next((name for name in reversed(names) if name.split(".")[0] != "pathlib"), "")


def _is_about_our_folders(error: OSError, arguments: Sequence[str]) -> bool:
    """Whether a file was refused where we write: in the working folder, or that of the run.

    The latter Hydra makes. What a command was told to write may lie anywhere.
    """
    if not isinstance(error.filename, str):
        return False
    is_here = Path(error.filename).absolute().is_relative_to(Path.cwd())
    return _is_command(arguments) or is_here or _raiser(error).startswith("hydra.")


def _fail(text: str, code: int) -> int:
    print(f"lzsweep: {text}", file=sys.stderr)
    return code
