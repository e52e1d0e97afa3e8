"""What logging costs a training: metrics at every step to a live server, beside none."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from statistics import median

from benchmarks.clock import Span
from benchmarks.pace import METRIC, SIZE, work_on
from benchmarks.sweepers import Sweep, Sweepers
from benchmarks.table import Row

STEP_S = 0.012
_TO_SD = 1.4826  # a normal distribution's standard deviation / its median absolute deviation
_OF_MEDIAN = 1.2533  # the standard error of a median / that of a mean


def logging(sweepers: Sweepers, *, quick: bool) -> Iterator[Row]:
    """Seconds a step with and without: one sweep over the two, in turn, on one slot.

    Each training is compared with its neighbour, since a machine's speed drifts; the median of
    many such ratios counts, and its noise is told.
    """
    n_rounds, n_steps = (2, 50) if quick else (40, 200)
    n_products = _calibrate(sweepers, n_steps)
    spans = _train(sweepers, "logging", n_steps, n_products, "mlflow,none", n_rounds)
    ratio, noise = compare(spans)
    off = median(s.steps_s for s in spans if not s.logger) / (n_steps - 1)
    print(
        f"  {n_rounds} pairs: {100 * (ratio - 1):+.2f} % with a noise of {100 * noise:.2f} %",
        flush=True,
    )
    yield Row("logging", "logger=none", 1e3 * off * ratio, 1e3 * off, "ms/step", "<= 1.01")


def compare(spans: Sequence[Span]) -> tuple[float, float]:
    """How long trainings with a logger take beside those without, which took turns.

    Returns:
        The median of the ratios of neighbours, and its standard error, which the median absolute
        deviation tells, so that a training that was disturbed counts no more than another.
    """
    on, off = ([s.steps_s for s in spans if bool(s.logger) == is_on] for is_on in (True, False))
    ratios = [a / b for a, b in zip(on, off, strict=True)]
    ratio = median(ratios)
    deviation = median(abs(r - ratio) for r in ratios)
    return ratio, _OF_MEDIAN * _TO_SD * deviation / len(ratios) ** 0.5


def _train(
    sweepers: Sweepers, name: str, n_steps: int, n_products: int, loggers: str, n_rounds: int
) -> Sequence[Span]:
    seeds = ",".join(map(str, range(1, n_rounds + 1)))
    sweep = Sweep(
        overrides=[
            *("data=one", "network=none", f"data.n_batches={n_steps}", "module=busy"),
            *("trainer=cpu", f"module.n_products={n_products}", f"seed={seeds}"),
            *("trainer.max_epochs=1", "trainer.log_every_n_steps=1"),
            f"objective.metric={METRIC}",
        ],
        key="logger",
        plain_key="",
        text=loggers,
        values=[],
        metric=METRIC,
        n_trials=n_rounds * len(loggers.split(",")),
        n_slots=1,
    )
    return sweepers.ours(name, sweep, "hydra/sweeper/pruner=none").spans


def _calibrate(sweepers: Sweepers, n_steps: int) -> int:
    """How many products make a step of the wanted length, with what Lightning adds to it."""
    product_s = _product_s()
    n_products = max(1, round(STEP_S / product_s))
    (span,) = _train(sweepers, "calibration", n_steps, n_products, "none", 1)
    too_long_s = span.steps_s / (n_steps - 1) - STEP_S
    return max(1, n_products - round(too_long_s / product_s))


def _product_s() -> float:
    """Seconds of a product on one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    matrix, times = torch.eye(SIZE), []
    for _ in range(20):
        began = time.perf_counter()
        work_on(matrix, 20)
        times.append((time.perf_counter() - began) / 20)
    torch.set_num_threads(threads)
    return median(times)
