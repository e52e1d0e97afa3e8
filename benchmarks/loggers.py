"""What logging costs a training: metrics at every step to a live server, beside none."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.pace import METRIC, SIZE, work_on
from benchmarks.sweepers import Sweep, Sweepers
from benchmarks.table import Row

STEP_S = 0.012


def logging(sweepers: Sweepers, *, quick: bool) -> Iterator[Row]:
    """Seconds a step with and without: one sweep over the two, in turn, on one slot.

    The fastest training of each counts, because others on the machine can only slow one down.
    """
    n_rounds, n_steps = (1, 50) if quick else (5, 400)
    seeds = ",".join(map(str, range(1, n_rounds + 1)))
    sweep = Sweep(
        overrides=[
            *(
                "data=one",
                "network=none",
                f"data.n_batches={n_steps}",
                "module=busy",
                "trainer=cpu",
            ),
            *(f"module.n_products={_calibrate()}", f"seed={seeds}", "trainer.max_epochs=1"),
            *("trainer.log_every_n_steps=1", f"objective.metric={METRIC}"),
        ],
        key="logger",
        plain_key="",
        text="mlflow,none",
        values=[],
        metric=METRIC,
        n_trials=2 * n_rounds,
        n_slots=1,
    )
    spans = sweepers.ours("logging", sweep, "hydra/sweeper/pruner=none").spans
    on, off = (
        min(s.steps_s for s in spans if bool(s.logger) == is_on) / (n_steps - 1)
        for is_on in (True, False)
    )
    yield Row("logging", "logger=none", 1e3 * on, 1e3 * off, "ms/step", "<= 1.01")


def _calibrate() -> int:
    """How many products make a step of the wanted length on one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    matrix, times = torch.eye(SIZE), []
    for _ in range(20):
        began = time.perf_counter()
        work_on(matrix, 20)
        times.append((time.perf_counter() - began) / 20)
    torch.set_num_threads(threads)
    return max(1, round(STEP_S / min(times)))
