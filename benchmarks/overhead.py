"""What a sweep costs beside its training: with equal short trials, and with uneven ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from benchmarks.clock import list_schedule_s, overhead_s, wall_of_trials_s, wall_s
from benchmarks.pace import METRIC
from benchmarks.sweepers import Outcome, Sweep, Sweepers
from benchmarks.table import Row

LR = (1e-3, 1e-1)
LONGEST = 16  # times the shortest of the uneven trials
SHORTEST_S = 1.0
KEPT = (1 / 4, 1 / 2, 1 / 4)
"""Goals against those who keep their processes: steady, total and warm."""
NAMES = {
    "stock": "Hydra's Optuna sweeper + submitit_local",
    "joblib": "Hydra's Optuna sweeper + joblib launcher",
    "ray": "Ray Tune, actors reused",
}


def short_trials(*, quick: bool) -> Sweep:
    """Trainings of about a second: the real module and data, cut short."""
    n_trials = 4 if quick else 24
    return Sweep(
        overrides=[
            *("network=tiny", "batch_size=32", "schedule=constant", "trainer=cpu"),
            *("trainer.max_epochs=1", "trainer.limit_train_batches=24"),
            *("trainer.limit_val_batches=4", "trainer.limit_test_batches=4"),
        ],
        key="lr",
        plain_key="module.lr",
        text=f"tag(log,interval({LR[0]},{LR[1]}))",
        values=np.geomspace(*LR, n_trials).tolist(),
        metric="val/loss_unweighted",
        n_trials=n_trials,
        n_slots=2,
    )


def steady(sweepers: Sweepers, *, quick: bool) -> Iterator[Row]:
    """Overhead a trial: since the first trial began, of the whole command, and once warm."""
    sweep = short_trials(quick=quick)
    ours = sweepers.ours("steady-ours", sweep, "hydra/sweeper/pruner=none")
    yield from _overheads(sweep, ours, sweepers.ray("steady-ray", sweep), "ray", KEPT)
    peer = sweepers.joblib("steady-joblib", sweep)
    yield from _overheads(sweep, ours, peer, "joblib", KEPT)
    peer = sweepers.stock("steady-stock", sweep)
    yield from _overheads(sweep, ours, peer, "stock", (1 / 30, 1 / 4, 1 / 30))


def uneven(sweepers: Sweepers, *, quick: bool) -> Iterator[Row]:
    """Wall time by the greedy list schedule of the same durations in the same order."""
    sweep = uneven_trials(quick=quick)
    ours = sweepers.ours("uneven-ours", sweep, "hydra/sweeper/pruner=none")
    bound = _bound(sweep, ours)
    yield Row("uneven", "greedy list schedule", wall_s(ours.spans), bound, "s", "<= 1.05")
    half = uneven_trials(quick=quick, part=2)  # starting its batches takes minutes
    peers = {
        "ray": sweepers.ray("uneven-ray", sweep),
        "stock": sweepers.stock("uneven-stock", half, "hydra/sweeper/sampler=grid"),
    }
    for peer, theirs in peers.items():
        mine, his = (wall_s(o.spans) / _bound(sweep, o) for o in (ours, theirs))
        yield Row(f"uneven_vs_{peer}", NAMES[peer], mine, his, "wall / schedule", "<= 1")


def uneven_trials(*, quick: bool, part: int = 1) -> Sweep:
    """Trainings that sleep, the longest sixteen times as long as the shortest, shuffled.

    Args:
        quick: a few short ones.
        part: take the first 1 / part of them.
    """
    n_trials = 6 if quick else 32
    scale = SHORTEST_S / 4 if quick else SHORTEST_S
    seconds = [round(scale * float(s), 3) for s in np.linspace(1, LONGEST, n_trials)]
    random.Random(1).shuffle(seconds)
    return sleeping(seconds[: n_trials // part])


def sleeping(seconds: Sequence[float]) -> Sweep:
    """Trainings that sleep so long each, on 4 slots."""
    return Sweep(
        overrides=[
            *("data=one", "network=none", "module=sleeper", "trainer=cpu", "trainer.max_epochs=1"),
            *(f"objective.metric={METRIC}", "trainer.num_sanity_val_steps=0"),
        ],
        key="module.seconds",
        plain_key="module.seconds",
        text=",".join(map(str, seconds)),
        values=list(seconds),
        metric=METRIC,
        n_trials=len(seconds),
        n_slots=4,
    )


def _bound(sweep: Sweep, outcome: Outcome) -> float:
    return list_schedule_s([span.seconds for span in outcome.spans], sweep.n_slots)


def _overheads(
    sweep: Sweep, ours: Outcome, peer: Outcome, name: str, goals: tuple[float, float, float]
) -> Iterator[Row]:
    walls: dict[str, Callable[[Outcome], float]] = {
        "steady": lambda outcome: wall_of_trials_s(outcome.spans),
        "total": lambda outcome: outcome.wall_s,
        "warm": lambda outcome: wall_s(outcome.spans),
    }
    for (what, wall), goal in zip(walls.items(), goals, strict=True):
        mine, his = (overhead_s(o.spans, sweep.n_slots, wall(o)) for o in (ours, peer))
        yield Row(f"{what}_vs_{name}", NAMES[name], mine, his, "s/trial", f"<= {goal:.3g}")
