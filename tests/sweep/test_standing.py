"""Pruning by rank: what Optuna's pruners make of several objectives, and of several seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    ThresholdPruner,
    WilcoxonPruner,
)
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from lzsweep.sweep.budget import Budget
from lzsweep.sweep.rows import TrialLost
from lzsweep.sweep.standing import Climb, judge, pruner_problem
from lzsweep.sweep.studies import create_study, open_study
from lzsweep.sweep.study import Study
from tests.sweep.conftest import Cli, check_study
from tests.sweep.test_study import make_record, make_study, must_claim

TWO = ("minimize", "maximize")


def climb(number: int, vectors: dict[int, tuple[float, ...]], **noted: int) -> Climb:
    return Climb(number, TrialState.COMPLETE, vectors, noted)


def make_front_study(url: str, pruner: BasePruner, sampler: BaseSampler | None = None) -> Study:
    record = make_record()
    record = type(record)(**{**vars(record), "metrics": ("loss", "speed"), "directions": TWO})
    study, _ = create_study(url, "front", record, Budget(40))
    study.set_deciders(sampler or RandomSampler(seed=1), pruner)
    return study


def test_median_by_rank_spares_the_front_and_stops_what_is_dominated() -> None:
    others = [climb(n, {1: (2.0 - n / 10, 5.0 - n)}) for n in range(5)]
    pruner = MedianPruner(n_startup_trials=2)
    for vector, is_bad in [((2.5, 0.0), True), ((9.0, 9.0), False), ((0.1, 0.0), False)]:
        me = Climb(7, TrialState.RUNNING, {1: vector}, {})
        assert judge(pruner, "s", TWO, [*others, me], 7, 1) == (is_bad, {})


def test_not_a_number_is_worse_than_everything() -> None:
    others = [climb(n, {1: (1.0, n / 10)}) for n in range(4)]
    me = Climb(5, TrialState.RUNNING, {1: (float("nan"), float("nan"))}, {})
    assert judge(MedianPruner(n_startup_trials=2), "s", TWO, [*others, me], 5, 1)[0]


def test_a_good_start_does_not_save_a_trial_that_the_others_have_left_behind() -> None:
    others = [climb(n, {1: (3.0, 1.0), 2: (1.0 - n / 10, 2.0)}) for n in range(4)]
    me = Climb(4, TrialState.RUNNING, {1: (2.9, 1.0), 2: (2.8, 1.0)}, {})
    pruner = MedianPruner(n_startup_trials=2)
    assert not judge(pruner, "s", TWO, [*others, me], 4, 1)[0]
    assert judge(pruner, "s", TWO, [*others, me], 4, 2)[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: MedianPruner(n_startup_trials=2),
        lambda: PercentilePruner(30.0, n_startup_trials=2, interval_steps=2),
        lambda: SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
        lambda: HyperbandPruner(min_resource=1, max_resource=8, reduction_factor=2),
        lambda: PatientPruner(MedianPruner(n_startup_trials=2), patience=1),
        NopPruner,
    ],
)
def test_one_objective_is_judged_as_optuna_itself_does(make: Any) -> None:
    """The same trials through Optuna's own report, and through the study in memory."""
    pruner, shadow_pruner = make(), make()
    study = optuna.create_study(study_name="s", pruner=pruner)
    climbs: dict[int, Climb] = {}
    starts = [5.0, 4.0, 3.0, 6.0, 2.0, 7.0, 1.0, 3.5, 2.2, 8.0, 1.5, 4.4]
    verdicts = []
    for start in starts:
        trial = study.ask()
        n, is_bad = trial.number, False
        vectors: dict[int, tuple[float, ...]] = {}
        noted: dict[str, int] = {}
        for rung in range(1, 9):
            value = start - rung / 10 * (n % 3 - 1)  # falls, stays or rises
            trial.report(value, rung)
            vectors[rung] = (value,)
            climbs[n] = Climb(n, TrialState.RUNNING, dict(vectors), dict(noted))
            is_bad, new = judge(shadow_pruner, "s", ["minimize"], [*climbs.values()], n, rung)
            noted |= new
            climbs[n] = Climb(n, TrialState.RUNNING, dict(vectors), dict(noted))
            assert is_bad == trial.should_prune(), (n, rung)
            if is_bad:
                break
        state = TrialState.PRUNED if is_bad else TrialState.COMPLETE
        study.tell(trial, None if is_bad else value, state=state)
        climbs[n] = Climb(n, state, vectors, noted)
        verdicts.append(is_bad)
    assert any(verdicts) == (make is not NopPruner)
    assert not all(verdicts)


@pytest.mark.parametrize(
    "pruner",
    [
        MedianPruner(n_startup_trials=2),
        PercentilePruner(30.0, n_startup_trials=2),
        SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
        HyperbandPruner(min_resource=1, max_resource=1, reduction_factor=2),
        PatientPruner(MedianPruner(n_startup_trials=2), patience=1),
    ],
)
def test_every_allowed_pruner_stops_the_hopeless_and_not_the_front(
    pruner: BasePruner, tmp_path: Path
) -> None:
    study = make_front_study(f"sqlite:///{tmp_path}/s.db", pruner)
    for n in range(5):  # all on one front
        claim = must_claim(study)
        for rung in range(1, 5):
            assert not study.report(claim, rung, 5.0 - n - rung / 10, 5.0 - n)
        study.tell(claim, "complete", [4.0 - n, 5.0 - n])
    claim = must_claim(study)
    verdicts = [study.report(claim, rung, 4.0 + rung, -2.0) for rung in range(1, 5)]
    assert any(verdicts)
    study.tell(claim, "pruned")
    assert [t.state for t in study.trials()] == ["complete"] * 5 + ["pruned"]
    assert study.trials()[0].curve[1] == 4.9, "people see the first objective's curve"


@pytest.mark.parametrize("sampler", [TPESampler, NSGAIISampler])
def test_samplers_go_on_after_trials_were_pruned_by_rank(
    url: str,
    sampler: Any,
) -> None:
    pruner = MedianPruner(n_startup_trials=2)
    study = make_front_study(url, pruner, sampler(seed=1))
    states = []
    for n in range(12):
        claim = must_claim(study)
        bad = study.report(claim, 1, float(n % 4), float(-(n % 4)))
        study.tell(claim, "pruned" if bad else "complete", None if bad else [n % 4, -(n % 4)])
        states.append(bad)
    assert any(states)
    assert not all(states)


def test_a_retried_trial_keeps_its_rungs_and_what_the_pruner_noted(url: str) -> None:
    study = make_front_study(url, SuccessiveHalvingPruner(min_resource=1, reduction_factor=2))
    claim = must_claim(study)
    assert not study.report(claim, 1, 0.5, 1.0)
    assert not study.retry(claim.trial, "node lost", max_retries=3)
    again = must_claim(study)
    assert again.trial.number == 0
    assert again.trial.curve == {1: 0.5}
    study.report(again, 1, 77.0, 77.0)  # said once already
    study.report(again, 2, 0.4, 1.0)
    (trial,) = study.trials()
    assert trial.curve == {1: 0.5, 2: 0.4}
    worse = must_claim(study)
    assert study.report(worse, 1, 0.6, 0.0)


@pytest.mark.parametrize(
    "pruner",
    [
        SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
        HyperbandPruner(min_resource=1, max_resource=1, reduction_factor=2),
    ],
)
def test_a_retried_trial_counts_once(url: str, pruner: BasePruner) -> None:
    study = make_study(url, n_trials=9)
    study.set_deciders(RandomSampler(seed=1), pruner)
    claim = must_claim(study)
    assert not study.report(claim, 1, 0.5)
    assert not study.retry(claim.trial, "node lost", max_retries=3)
    again = must_claim(study)
    assert not study.report(again, 1, 0.5)
    assert not study.report(must_claim(study), 1, 0.1)
    assert study.report(must_claim(study), 1, 0.3), "the better half of three is one"


def test_a_trial_that_is_taken_away_while_it_is_judged_is_lost(url: str) -> None:
    class Slow(SuccessiveHalvingPruner):
        def prune(self, study: Any, trial: Any) -> bool:
            assert not other.retry(claim.trial, "silent", max_retries=3)
            return super().prune(study, trial)

    study, other = make_study(url), make_study(url)
    study.set_deciders(RandomSampler(seed=1), Slow(min_resource=1))
    claim = must_claim(study)
    with pytest.raises(TrialLost, match="trial 0 goes on elsewhere"):
        study.report(claim, 1, 0.5)


def test_what_goes_by_the_value_itself_is_refused_for_several_objectives() -> None:
    for pruner in (ThresholdPruner(upper=1.0), WilcoxonPruner()):
        assert pruner_problem(pruner, 1) == ""
        name = type(pruner).__name__
        assert f"their rank, which {name} cannot; those that can: none, median" in pruner_problem(
            pruner, 2
        )
    inner = PatientPruner(ThresholdPruner(upper=1.0), patience=2)
    assert "ThresholdPruner cannot" in pruner_problem(inner, 2)
    assert pruner_problem(PatientPruner(None, patience=2), 2) == ""


def test_a_trial_of_several_seeds_is_pruned_by_their_mean(url: str) -> None:
    study, _ = create_study(url, "seeds", make_record(), Budget(9))
    study.set_deciders(RandomSampler(seed=1), MedianPruner(n_startup_trials=2))
    for value in (3.0, 2.0, 1.0):
        claim = must_claim(study)
        for seed in (1, 2):
            for rung in (1, 2):
                assert not study.report(claim, rung, value, seed=seed)
        study.tell(claim, "complete", [value])
    claim = must_claim(study)
    assert not study.report(claim, 1, 1.5, seed=1)
    assert not study.report(claim, 2, 1.5, seed=1)
    assert study.report(claim, 1, 4.5, seed=2), "the mean 3.0 is worse than the median 2.0"
    assert study.trials()[3].curve == {1: 3.0, 2: 1.5}


@pytest.mark.slow
def test_a_sweep_prunes_what_the_front_dominates(cli: Cli, work: Path) -> None:
    cli.sweep(
        "study.name=f", "network=tiny", "lr=0.05,0.02,1e-9", "worker.slots=1",
        "trainer.max_epochs=4", "trainer.val_check_interval=2",
        "objective.metric=[val/loss_unweighted,val/policy_loss]",
        "objective.direction=minimize", "hydra.sweeper.pruner.n_startup_trials=2",
        "study.resource=positions", "study.rung=128",
    )  # fmt: skip
    status = check_study(cli, work, "f", 3)
    assert [t["state"] for t in status["trials"]] == ["complete", "complete", "pruned"]
    trials = open_study("sqlite:///lzsweep.db", "f").trials()
    assert [list(t.curve) for t in trials] == [[1, 2, 3, 4], [1, 2, 3, 4], [1]]
    assert "worse than the others at this rung" in trials[2].reason
    code, out, err = cli("status", "f")
    assert code == 0, err
    assert "█" in out, "the first objective's curve is shown"
    code, _, err = cli(
        "-m", "study.name=g", "lr=0.1,0.2", "objective.metric=[val/loss,val/policy_loss]",
        "objective.direction=minimize", "hydra/sweeper/pruner=threshold", "study.resource=steps",
    )  # fmt: skip
    assert code == 2
    assert "their rank, which ThresholdPruner cannot; those that can: none, median" in err
    assert "study.rung must say how many steps lie between two judgements" in err
