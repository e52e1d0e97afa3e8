"""What a study found: its status as data, as tables, as a summary, and `best.yaml`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lzsweep.config import make_loader, to_yaml
from lzsweep.files import write_whole
from lzsweep.sweep.record import STATES, Record, Trial
from lzsweep.sweep.seeds import log_of
from lzsweep.sweep.study import Study
from lzsweep.tracking.outbox import run_id_of

BARS = "▁▂▃▄▅▆▇█"
NAME_WIDTH = 20
STYLES = {
    "complete": "green",
    "pruned": "yellow",
    "failed": "red",
    "running": "cyan",
    "waiting": "dim",
}


def make_console() -> Console:
    """Standard output, as wide as it needs to be where no terminal limits it."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)


def describe(study: Study) -> dict[str, Any]:
    """A study as plain data: the JSON of `lzsweep status`, counted by trial."""
    record = study.record
    trials = study.trials()
    return {
        "study": study.name,
        "n_trials": study.n_trials,
        "states": count_states(trials),
        "spent": study.spent(trials),
        "stopped": study.stopped(),
        "trials": [_describe_trial(t, Path(record.folder)) for t in trials],
        "best": describe_best(study),
    }


def describe_best(study: Study) -> dict[str, Any] | list[dict[str, Any]] | None:
    """The best trial; a list of them, the Pareto front, for several objectives."""
    folder = Path(study.record.folder)
    best = [_describe_trial(t, folder) for t in study.best()]
    if len(study.record.metrics) > 1:
        return best
    return best[0] if best else None


def count_states(trials: Sequence[Trial]) -> dict[str, int]:
    return {state: sum(t.state == state for t in trials) for state in STATES}


def _describe_trial(trial: Trial, folder: Path) -> dict[str, Any]:
    own = folder / str(trial.number)
    return {
        "number": trial.number,
        "state": trial.state,
        "attempt": trial.attempt,
        "params": dict(trial.params),
        "values": list(trial.values) if trial.values else None,
        "metrics": dict(trial.metrics),
        "run_id": trial.run_id or run_id_of(own),
        "folder": str(own),
        "log": str(log_of(own)),
        "ending": trial.ending,
        "reason": trial.reason,
        "seeds": {str(r.seed): list(r.values) for r in trial.seeds},
    }


def trial_table(study: Study, trials: Sequence[Trial], n_rows: int | None = None) -> Table:
    """The trials as a table; with `n_rows` the running ones and the latest others."""
    record = study.record
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("#", justify="right")
    table.add_column("state")
    for name in record.space:  # in a narrow terminal the notes give way, not the names
        table.add_column(escape(name), min_width=min(len(name), NAME_WIDTH))
    for metric in record.metrics:
        table.add_column(metric, justify="right", min_width=min(len(metric), NAME_WIDTH))
    table.add_column("curve")
    table.add_column("time", justify="right")
    table.add_column("", overflow="ellipsis", no_wrap=True)
    shown = _latest(trials, n_rows) if n_rows else trials
    best = {t.number for t in study.best()}
    word = "best" if len(record.metrics) == 1 else "front"
    signs = [1 if d == "minimize" else -1 for d in record.directions]
    for trial in shown:
        values = trial.values or _best_so_far(trial, signs)
        cells = [show_metric(v) for v in values] or [""]
        notes = (
            word if trial.number in best else "",
            show_seeds(trial),
            show_ending(trial),
            *trial.reason.splitlines()[:1],
        )
        table.add_row(
            f"{trial.number}",
            f"[{STYLES[trial.state]}]{trial.state}[/]",
            *(escape(show_value(trial.params.get(name, ""))) for name in record.space),
            *cells,
            *[""] * (len(record.metrics) - len(cells)),
            sparkline(list(trial.curve.values())),
            show_seconds(_seconds(trial)),
            escape("; ".join(filter(None, notes))),
        )
    return table


def _latest(trials: Sequence[Trial], n_rows: int) -> list[Trial]:
    running = [t for t in trials if t.state == "running"]
    others = [t for t in trials if t.state not in ("running", "waiting")]
    waiting = [t for t in trials if t.state == "waiting"][:2]
    n_others = max(1, n_rows - len(running) - len(waiting))
    return sorted([*running, *others[-n_others:], *waiting], key=lambda t: t.number)


def _best_so_far(trial: Trial, signs: Sequence[int]) -> list[float]:
    if not trial.curve:
        return []
    return [min(trial.curve.values(), key=lambda v: signs[0] * v)]


def _seconds(trial: Trial) -> float | None:
    if trial.started is None or trial.state == "waiting":
        return None
    return ((trial.finished or datetime.now()) - trial.started).total_seconds()


def sparkline(values: Sequence[float], width: int = 16) -> str:
    """A curve in one cell: the last `width` values between their lowest and highest."""
    last = [v for v in values[-width:] if v == v]
    if not last:
        return ""
    low, span = min(last), (max(last) - min(last)) or 1.0
    return "".join(BARS[int((v - low) / span * (len(BARS) - 1))] for v in last)


def show_value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show_metric(value: float) -> str:
    """A value of a metric: four decimals, and a cost in millions without its last digits."""
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.5g}"


def show_values(metrics: Sequence[str], trial: Trial) -> str:
    """The objectives of a complete trial: `val/loss=4.2101 cost/flops=1.2e+08`; else empty."""
    values = zip(metrics, trial.values or (), strict=False)
    return " ".join(f"{m}={show_metric(v)}" for m, v in values)


def show_seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def show_params(params: Mapping[str, object]) -> str:
    return " ".join(f"{k}={show_value(v)}" for k, v in params.items())


def show_seeds(trial: Trial) -> str:
    """The first objective by seed, where a trial has several: `seeds 1: 4.2101, 2: 4.3002`."""
    shown = ", ".join(f"{r.seed}: {show_metric(r.values[0])}" for r in trial.seeds)
    return f"seeds {shown}" if shown else ""


def show_ending(trial: Trial) -> str:
    """What its state does not say of how a trial went: `infeasible, attempt 2`."""
    kind = trial.ending if trial.state == "failed" else ""
    return ", ".join(filter(None, (kind, f"attempt {trial.attempt}" * (trial.attempt > 1))))


def say_failure(trial: Trial, log: str) -> str:
    """One line on a failed trial: how it ended, at which attempt, why, and where its log is."""
    return f"#{trial.number} failed ({show_ending(trial)}): {trial.reason}; see {log}"


def overhead_s(trials: Sequence[Trial]) -> float | None:
    """Seconds a trial that no training filled.

    For each slot of each worker: time from its first trial's start to its last one's end, less
    the training time; summed, by the number of trials. A pause between two commands belongs to no
    slot. Only trials of which the training time is known count; None when there is none.
    """
    done = [t for t in trials if t.train_s is not None and t.started and t.finished]
    idle_s = 0.0
    for worker in {t.worker for t in done}:
        mine = [t for t in done if t.worker == worker]
        began = min(t.started for t in mine if t.started)
        ended = max(t.finished for t in mine if t.finished)
        idle_s += (ended - began).total_seconds() - sum(t.train_s or 0.0 for t in mine)
    return idle_s / len(done) if done else None


def ranked(record: Record, trials: Sequence[Trial]) -> list[Trial]:
    """Complete trials, the best first: by the objective that leads, ties by their numbers."""
    sign = 1 if record.directions[record.lead] == "minimize" else -1
    complete = [t for t in trials if t.values]
    return sorted(complete, key=lambda t: (sign * (t.values or ())[record.lead], t.number))


def say_again(record: Record) -> str:
    """What the command of `write_best` does."""
    if len(record.metrics) == 1:
        return "train it again"
    return f"train the front's best in {record.metrics[record.lead]} again"


def write_best(study: Study) -> str:
    """Write `FOLDER/best/best.yaml`, a config that trains the best trial again.

    For several objectives it is the first of `ranked`.

    Returns:
        The command that trains it; empty while no trial is complete.
    """
    best = study.best()
    if not best:
        return ""
    record = study.record
    trial = ranked(record, best)[0]
    values = ", ".join(
        f"{m}={v:.6g}" for m, v in zip(record.metrics, trial.values or (), strict=True)
    )
    overrides = [*record.fixed, *study.space.to_overrides(trial.params)]
    config, extra = _as_config(overrides, make_loader(record.conf))
    path = Path(record.folder) / "best" / "best.yaml"
    near = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    command = shlex.join(
        ["lzsweep", "--config-dir", str(near.parent.parent), "+best=best", *extra]
    )
    text = (
        "# @package _global_\n"
        f"# Trial {trial.number} of study {study.name}: {values}.\n"
        f"# Train it again:  {command}\n"
        f"{to_yaml(config)}"
    )
    write_whole(path, text.encode())
    return command


def _as_config(overrides: Sequence[str], loader: ConfigLoader) -> tuple[dict[str, Any], list[str]]:
    """Overrides as a config: group choices in its defaults list, values below; the rest back."""
    defaults: list[dict[str, str]] = []
    values = OmegaConf.create({})
    extra: list[str] = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if key.startswith(("study.", "worker.", "tracking.")):
            continue  # how it was found is no part of what was found
        if override.is_delete() or override.is_add():
            extra.append(str(override.input_line))  # a config cannot say these
        elif loader.get_group_options(key):
            defaults.append({f"override /{key}": str(override.value())})
        else:
            OmegaConf.update(values, key, override.value(), force_add=True)
    plain = OmegaConf.to_container(values)
    assert isinstance(plain, dict)
    return {"defaults": defaults, **plain}, extra
