"""Several trainings of one point: the means, the runs, what a killed one leaves to do."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import pytest
from mlflow import MlflowClient

from lzsweep.config import BEST_CHECKPOINT, WEIGHTS_FILE
from lzsweep.sweep.record import SeedResult, Trial
from lzsweep.sweep.seeds import best_seed, cut_short, log_of, sum_up, write_means
from lzsweep.sweep.studies import open_study
from lzsweep.sweep.study import Study
from lzsweep.sweep.trial import End
from lzsweep.tracking.journal import Journal, read_records
from tests.sweep.conftest import Cli, find_runs
from tests.sweep.test_study import make_record, make_study, must_claim
from tests.sweep.test_sweep import trial_processes, watching

OBJECTIVE = "val/loss_unweighted"


def test_the_end_of_a_trial_is_the_mean_of_its_seeds() -> None:
    results = [
        SeedResult(1, (1.0,), {"a": 1.0, "b": 5.0}, 10.0),
        SeedResult(2, (2.0,), {"a": 3.0}, 20.0),
    ]
    end = sum_up(results, ["a"])
    assert (end.kind, end.values, end.train_s) == ("complete", (1.5,), 30.0)
    assert end.metrics == {"a": 2.0, "a_sd": pytest.approx(math.sqrt(0.5))}
    lost = cut_short(End("error", "it fell over", train_s=5.0), 3, results)
    assert (lost.kind, lost.reason, lost.train_s) == ("error", "seed 3: it fell over", 35.0)
    assert cut_short(End("stopped"), 3, results).reason == ""


def test_the_best_seed_has_the_best_network_whatever_the_costs() -> None:
    names = ("cost/train_s", "val/policy_top1")
    record = replace(make_record(), metrics=names, directions=("minimize", "maximize"))
    results = {
        seed: SeedResult(seed, values, dict(zip(names, values, strict=True)), 1.0)
        for seed, values in {1: (1.0, 0.1), 2: (2.0, 0.3), 3: (3.0, 0.2)}.items()
    }
    assert best_seed(results, record) == 2
    assert best_seed({}, record) is None


def test_means_are_noted_where_all_seeds_have_been(tmp_path: Path) -> None:
    for seed, n_steps in ((1, 4), (2, 2)):
        with Journal(tmp_path / f"seed{seed}") as journal:
            for step in range(1, n_steps + 1):
                journal.metrics(step, {"val/loss": seed * step, "system/cpu_percent": 50.0})
    write_means(tmp_path, [tmp_path / "seed1", tmp_path / "seed2"], {"val/loss_sd": 0.5})
    records = [r for r, _ in read_records(tmp_path / "journal.jsonl")]
    assert [(r["step"], r["values"]) for r in records] == [
        (1, {"val/loss": 1.5}),
        (2, {"val/loss": 3.0}),
        (2, {"val/loss_sd": 0.5}),
    ]


def test_a_retry_keeps_the_seeds_that_are_complete(url: str) -> None:
    study = make_study(url, n_trials=1)
    claim = must_claim(study)
    study.keep_seed(claim, SeedResult(1, (0.5,), {"loss": 0.5}, 3.0))
    study.report(claim, 1, 0.7, seed=2)
    assert not study.retry(claim.trial, "node lost", max_retries=3)
    again = must_claim(study)
    assert again.trial.seeds == (SeedResult(1, (0.5,), {"loss": 0.5}, 3.0),)
    study.keep_seed(again, SeedResult(2, (0.7,), {"loss": 0.7}, 4.0))
    study.tell(again, "complete", [0.6])
    (trial,) = study.trials()
    assert [r.seed for r in trial.seeds] == [1, 2]
    assert trial.values == (0.6,)
    assert study.is_done(), "it counts once"


@pytest.mark.slow
def test_seeds_are_judged_by_their_mean_and_survive_a_kill(cli: Cli, work: Path) -> None:
    killed: list[int] = []

    def kill(study: Study, trials: list[Trial]) -> None:
        is_at_second = any(t.seeds for t in trials) and log_of(work / "multirun/s/0").exists()
        if not killed and is_at_second and "epoch 1," in log_of(work / "multirun/s/0").read_text():
            if log_of(work / "multirun/s/0").parent.name != "seed8":
                return
            for process in trial_processes():
                process.kill()
                killed.append(process.pid)

    with watching("s", kill):
        out = cli.sweep(
            "study.name=s", "study.seeds=2", "seed=7", "network=tiny", "lr=0.01", "worker.slots=1",
            "trainer.max_epochs=12", "hydra/sweeper/pruner=none",
        )  # fmt: skip
    assert killed
    (trial,) = open_study("sqlite:///lzsweep.db", "s").trials()
    assert (trial.attempt, trial.state) == (2, "complete")
    found = {r.seed: r.values[0] for r in trial.seeds}
    assert list(found) == [7, 8]
    assert found[7] != found[8]
    assert trial.values is not None
    assert trial.values[0] == pytest.approx(fmean(found.values()))
    assert trial.metrics[f"{OBJECTIVE}_sd"] == pytest.approx(stdev(found.values()))
    assert f"(seeds 7: {found[7]:.4f}, 8: {found[8]:.4f})" in out
    assert "s: 1 of 1 trials finished" in out
    folder = work / "multirun/s/0"
    for seed in found:
        log = (folder / f"seed{seed}/trial.log").read_text()
        assert log.count("epoch 0,") == 1, "what was done was not done again"
    best = folder / f"seed{min(found, key=lambda seed: found[seed])}"
    for name in (BEST_CHECKPOINT, WEIGHTS_FILE):
        assert (folder / name).read_bytes() == (best / name).read_bytes()
    assert cli("export", "s", "-o", "net.txt.gz")[0] == 0
    assert Path("net.txt.gz").read_bytes() == (best / WEIGHTS_FILE).read_bytes()
    check_runs(work, trial)
    status = cli.status("s")["trials"][0]
    assert status["seeds"] == {str(seed): [value] for seed, value in found.items()}
    code, out, err = cli("status", "s", "--trial", "0")
    assert code == 0, err
    assert "seed8/trial.log" in out
    assert "epoch 11," in out


def check_runs(work: Path, trial: Trial) -> None:
    (parent,), runs = find_runs(work)
    seeds = {r.data.tags["lzsweep.seed"]: r for r in runs if "lzsweep.seed" in r.data.tags}
    (own,) = [r for r in runs if "lzsweep.seed" not in r.data.tags]
    assert own.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert own.data.params == {k: str(v) for k, v in trial.params.items()}
    assert set(seeds) == {"7", "8"}
    client = MlflowClient(f"sqlite:///{work / 'mlflow.db'}")

    def curve(run_id: str) -> dict[int, float]:
        history = client.get_metric_history(run_id, OBJECTIVE)
        assert len({m.step for m in history}) == len(history) == 12
        return {m.step: m.value for m in history}

    curves = []
    for run in seeds.values():
        assert run.data.tags["mlflow.parentRunId"] == own.info.run_id
        assert run.info.status == "FINISHED"
        curves.append(curve(run.info.run_id))
    for step, mean in curve(own.info.run_id).items():
        assert mean == pytest.approx(fmean(c[step] for c in curves))
    assert own.data.metrics[f"{OBJECTIVE}_sd"] == pytest.approx(trial.metrics[f"{OBJECTIVE}_sd"])
    assert own.info.status == "FINISHED"
