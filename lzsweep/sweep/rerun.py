"""A trial trained again: its frozen configs, its parameters, its seed, its number of threads.

On CPU, with the same code and games, the same metrics come out, bit for bit.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from lzsweep.config import make_loader, objectives_of
from lzsweep.errors import UserError
from lzsweep.sweep.composer import Composer
from lzsweep.sweep.folder import check_frozen
from lzsweep.sweep.record import Record, Trial
from lzsweep.sweep.report import show_params
from lzsweep.sweep.seeds import seed_folder
from lzsweep.sweep.space import Space
from lzsweep.sweep.study import Study
from lzsweep.tracking.outbox import run_id_of
from lzsweep.tracking.runs import changed_code
from lzsweep.train.devices import check_gpus
from lzsweep.train.run import data_version, prepare_data, train_recorded


def train_again(study: Study, number: int, seed: int | None = None) -> None:
    """Train a trial again into `outputs/DATE/TIME` of the folder where its study began.

    What differs from then is warned of, a line each; the two results are printed.

    Args:
        study: whose trial.
        number: of the trial.
        seed: one of its seeds; the first by default.

    Raises:
        UserError: there is no such trial or seed, or what it was made of, or its GPU, is not here.
    """
    record = study.record
    trial = study.trial(number)
    _check_there(record)
    with contextlib.chdir(record.cwd):  # paths in the configs are relative to it
        config = _compose(record, trial, None)
        first = config["seed"]
        seeds = range(first, first + record.seeds)
        if seed is not None and seed not in seeds:
            raise UserError(
                f"--seed must be a seed of trial {number} of {study.name}"
                f" ({', '.join(map(str, seeds))}), but got {seed}"
            )
        if seed is not None:
            config = _compose(record, trial, seed)
        # The configuration takes the environment at its word.
        config["tracking"]["uri"] = record.server(config["tracking"]["uri"])
        check_gpus(config["trainer"])
        if news := prepare_data(config["data"]):
            print(news)
        for warning in _differences(record, config):
            print(f"warning: {warning}", file=sys.stderr)
        own = Path(record.folder) / str(number)
        own = own if record.seeds == 1 else seed_folder(own, config["seed"])
        metrics = train_recorded(
            config,
            Path(f"{datetime.now():outputs/%Y-%m-%d/%H-%M-%S-%f}").absolute(),
            name=f"rerun of {study.name} #{number:03d} {show_params(trial.params)}".strip(),
            params=trial.params,
            tags={"rerun_of": f"{study.name}/{number}", "rerun_of_run": run_id_of(own) or ""},
            threads=trial.threads,
        )
    _compare(record, trial, config["seed"], metrics)


def _check_there(record: Record) -> None:
    if not Path(record.cwd).is_dir():
        raise UserError(
            "a trial is trained again where its study began, but the folder"
            f" {record.cwd} is gone; make it, or bring it back"
        )
    check_frozen(record.conf)


def _compose(record: Record, trial: Trial, seed: int | None) -> dict[str, Any]:
    last = [] if seed is None else [f"seed={seed}"]
    space = Space.from_json(record.tree, record.fixed)
    composer = Composer(make_loader(record.conf), space.fixed, record.config_name)
    return composer([*space.to_overrides(trial.params), *last])


def _differences(record: Record, config: dict[str, Any]) -> Iterator[str]:
    """What may make another result, in words."""
    if changed := changed_code(record.code):
        yield "the study began with {}, this is {}".format(*changed)
    versions = data_version(config["data"])
    if not versions:
        yield f"nothing is known of the data of {config['data'].get('_target_')}, then and now"
    for name, version in versions.items():
        if record.data.get(name) != version:
            yield f"the games of data.path={config['data']['path']} are not those of the study"


def _compare(record: Record, trial: Trial, seed: int, metrics: dict[str, float]) -> None:
    then = {result.seed: result.values for result in trial.seeds}.get(seed, trial.values)
    if then is None:
        print(f"trial {trial.number} was {trial.state} then, with no result to compare")
        return
    values = objectives_of(metrics, record.metrics)
    for metric, old, new in zip(record.metrics, then, values, strict=True):
        same = "the same" if old == new else f"{new - old:+.3g}"
        print(f"{metric}: {old:.6f} then, {new:.6f} now: {same}")
