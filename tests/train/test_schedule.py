from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler

from lzsweep.errors import ConfigError
from lzsweep.train.schedule import Plateau, constant, cosine, one_cycle, plateau


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)


def rates(schedule: LRScheduler, n_steps: int) -> list[float]:
    seen = []
    for _ in range(n_steps):
        seen.append(float(schedule.get_last_lr()[0]))
        schedule.optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize("make", [constant, plateau])
def test_warm_up_rises_in_equal_steps_and_ends(make: Callable[..., LRScheduler]) -> None:
    schedule = make(sgd(), 100, warmup_steps=4)

    assert rates(schedule, 6) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5])


def test_cosine_goes_from_the_full_rate_to_the_floor() -> None:
    schedule = cosine(sgd(), 10, warmup_steps=2, min_factor=0.1)

    seen = rates(schedule, 11)

    assert seen[:3] == pytest.approx([0.5 / 3, 1.0 / 3, 0.5])
    assert seen[6] == pytest.approx((0.5 + 0.05) / 2)
    assert seen[10] == pytest.approx(0.05)
    assert all(a > b for a, b in pairwise(seen[2:]))


@pytest.mark.parametrize("n_steps", [math.inf, 3])
def test_cosine_needs_to_know_the_end(n_steps: float) -> None:
    with pytest.raises(ConfigError, match=r"known number of steps.*trainer\.max_steps"):
        cosine(sgd(), n_steps, warmup_steps=5)


def test_one_cycle_rises_and_falls_while_the_momentum_falls_and_rises() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5, momentum=0.9)
    schedule = one_cycle(optimizer, 9, pct_start=0.4, div_factor=5.0, final_div_factor=10.0)

    momenta, seen = [], []
    for _ in range(10):
        momenta.append(optimizer.param_groups[0]["momentum"])
        seen += rates(schedule, 1)

    assert (seen[0], seen[3], seen[9]) == pytest.approx((0.1, 0.5, 0.01))
    assert all(a < b for a, b in pairwise(seen[:4]))
    assert all(a > b for a, b in pairwise(seen[3:]))
    assert (momenta[0], momenta[3], momenta[9]) == pytest.approx((0.95, 0.85, 0.95))


def test_one_cycle_swings_the_first_beta_and_invents_no_momentum() -> None:
    adam = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.5, betas=(0.9, 0.99))
    plain = sgd()

    one_cycle(adam, 10)
    one_cycle(plain, 10)

    assert adam.param_groups[0]["betas"] == pytest.approx((0.95, 0.99))
    assert plain.param_groups[0]["momentum"] == 0


@pytest.mark.parametrize("n_steps", [math.inf, 3])
def test_one_cycle_needs_to_know_the_end(n_steps: float) -> None:
    with pytest.raises(ConfigError, match=r"known number of steps.*trainer\.max_steps"):
        one_cycle(sgd(), n_steps)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"pct_start": 1.0}, "`0 < pct_start < 1`"),
        ({"div_factor": 0.5}, "`div_factor >= 1`"),
        ({"base_momentum": 0.99}, "`0 <= base_momentum <= max_momentum < 1`"),
    ],
)
def test_one_cycle_refuses_nonsense(options: dict[str, float], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        one_cycle(sgd(), 10, **options)  # type: ignore[arg-type]


def observe(schedule: Plateau, values: list[float]) -> list[float]:
    """The rate after each validation."""
    seen = []
    for value in values:
        schedule.observe(value)
        schedule.optimizer.step()
        schedule.step()
        seen.append(float(schedule.get_last_lr()[0]))
    return seen


def test_plateau_cuts_after_patience_and_counts_anew() -> None:
    schedule = plateau(sgd(), math.inf, factor=0.1, patience=1, threshold=0.0)

    #              new best, one forgiven, cut; one forgiven, new best, one forgiven
    seen = observe(schedule, [5.0, 4.0, 4.0, 4.0, 4.5, 3.0, 3.0])

    assert seen == pytest.approx([0.5, 0.5, 0.5, 0.05, 0.05, 0.05, 0.05])


def test_plateau_wants_a_fall_above_the_threshold() -> None:
    schedule = plateau(sgd(), math.inf, factor=0.1, patience=0, threshold=0.01)

    assert observe(schedule, [5.0, 4.99, 4.9]) == pytest.approx([0.5, 0.05, 0.05])


def test_plateau_stops_at_the_floor() -> None:
    schedule = plateau(sgd(), math.inf, factor=0.1, patience=0, min_factor=0.05)

    assert observe(schedule, [1.0] * 4) == pytest.approx([0.5, 0.05, 0.025, 0.025])


def test_plateau_remembers_itself() -> None:
    first, second = (plateau(sgd(), math.inf, factor=0.5, patience=1) for _ in range(2))
    observe(first, [1.0, 1.0])

    second.load_state_dict(first.state_dict())

    assert observe(second, [1.0]) == pytest.approx([0.25])


@pytest.mark.parametrize("options", [{"factor": 1.5}, {"patience": -1}, {"warmup_steps": -1}])
def test_plateau_refuses_nonsense(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="`0 < factor < 1`, `patience >= 0`"):
        plateau(sgd(), math.inf, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [constant, cosine])
def test_a_warm_up_takes_no_negative_time(make: Callable[..., LRScheduler]) -> None:
    with pytest.raises(ConfigError, match=r"`warmup_steps >= 0` must hold .*warmup_steps=-1"):
        make(sgd(), 100, warmup_steps=-1)
