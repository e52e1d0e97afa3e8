"""How soon a good network is found: the best objective against wall time.

The stock sweeper trains its trials; then ours, with its default pruner, gets as much time, and
ends when it has a network as good. Random points are ours without a judge: they show what sampler
and pruner are worth. Wall time is of the whole command, start-up included.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterator
from pathlib import Path

from benchmarks.sweepers import Outcome, Sweep, Sweepers
from benchmarks.table import Row

Curve = list[tuple[float, float]]
METRIC = "val/loss_unweighted"
TPE = "hydra.sweeper.sampler.n_startup_trials=5"  # by default it would be chance all along


def search(sweepers: Sweepers, output: Path, *, quick: bool) -> Iterator[Row]:
    """Time to the stock's final value by the stock's time, the mean over the repeats."""
    repeats = 1 if quick else 3
    curves: list[dict[str, Curve]] = []
    times: dict[str, list[float]] = {"ours": [], "stock": [], "random": [], "ours_to_random": []}
    for seed in range(1, repeats + 1):
        sweep = small_nets(seed, quick=quick)
        stock = sweepers.stock(f"search-stock-{seed}", sweep, TPE)
        random = sweepers.ours(
            f"search-random-{seed}",
            sweep,
            "hydra/sweeper/sampler=random",
            "hydra/sweeper/pruner=none",
        )
        best = {name: curve_of(o)[-1][1] for name, o in (("stock", stock), ("random", random))}
        ours = sweepers.ours(
            f"search-ours-{seed}",
            sweep,
            f"study.n_trials={50 * sweep.n_trials}",
            f"study.target={min(best.values())}",
            f"study.max_time={stock.wall_s:.0f}",
            TPE,
        )
        curves.append(
            {"stock": curve_of(stock), "random": curve_of(random), "ours": curve_of(ours)}
        )
        times["stock"].append(stock.wall_s)
        times["random"].append(random.wall_s)
        times["ours"].append(reached_s(curve_of(ours), best["stock"], ours.wall_s))
        times["ours_to_random"].append(reached_s(curve_of(ours), best["random"], ours.wall_s))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(curves, indent=1) + "\n")
    mean = {name: statistics.mean(found) for name, found in times.items()}
    against = "Hydra's Optuna sweeper + submitit_local, all its trials"
    yield Row("search", against, mean["ours"], mean["stock"], "s", "<= 0.333")
    against = "as many random points, ours without pruning"
    yield Row("search_vs_random", against, mean["ours_to_random"], mean["random"], "s", "<= 1")


def small_nets(seed: int, *, quick: bool) -> Sweep:
    """The space of `sweeps/demo.yaml`, trainings of a few seconds."""
    return Sweep(
        overrides=[
            *("batch_size=64", "schedule=cosine", "loss.value=0.1", "trainer=cpu"),
            *(f"trainer.max_epochs={2 if quick else 4}", "trainer.limit_train_batches=16"),
            *("trainer.limit_val_batches=6", "trainer.limit_test_batches=1"),
            *("network.blocks=1,2,3", "network.filters=16,32", f"seed={seed}"),
            f"hydra.sweeper.sampler.seed={seed}",
        ],
        key="lr",
        plain_key="",
        text="tag(log,interval(1e-2,3e-1))",
        values=[],
        metric=METRIC,
        n_trials=2 if quick else 6,
        n_slots=2,
    )


def curve_of(outcome: Outcome) -> Curve:
    """Seconds since the command, and the best value of the trainings that had ended by then."""
    ended = sorted((s.ended - outcome.began, s.best) for s in outcome.spans if s.best is not None)
    bests = itertools.accumulate((value for _, value in ended), min)
    return [(seconds, best) for (seconds, _), best in zip(ended, bests, strict=True)]


def reached_s(curve: Curve, value: float, wall_s: float) -> float:
    """When a curve first was as good as a value; the whole time if it never was."""
    return next((seconds for seconds, best in curve if best <= value), wall_s)
