"""Logging never stops training: the MLflow server goes away in the middle of a sweep."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from mlflow import MlflowClient

from lzsweep.sweep.record import Trial
from lzsweep.sweep.study import Study
from lzsweep.tracking import recorder
from tests.sweep.conftest import Cli
from tests.sweep.test_sweep import watching
from tests.tracking.conftest import Server, empty_database, own_server  # noqa: F401


@pytest.mark.slow
def test_a_server_lost_for_good_costs_no_metric(
    cli: Cli,
    work: Path,
    own_server: Server,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorder, "DELIVERY_S", 3.0)
    lost: list[str] = []

    def lose_server(study: Study, trials: list[Trial]) -> None:
        if not lost and any(len(t.curve) > 1 for t in trials):
            lost.append(study.name)
            own_server.kill()

    with watching("o", lose_server):
        cli.sweep(
            "study.name=o", f"tracking.uri={own_server.uri}", "network=tiny", "lr=0.01,0.02,0.05",
            "trainer.max_epochs=8", "hydra/sweeper/pruner=none",
        )  # fmt: skip
    assert lost
    assert cli.status("o")["states"]["complete"] == 3
    own_server.start()
    code, out, err = cli("sync", "multirun", "--uri", own_server.uri)
    assert code == 0, (out, err)
    client = MlflowClient(own_server.uri)
    experiment = client.get_experiment_by_name("lzsweep")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    trials = {r.data.tags["lzsweep.trial"]: r for r in runs if "lzsweep.trial" in r.data.tags}
    assert len(runs) == len(trials) + 1 == 4
    assert {r.info.status for r in runs} == {"FINISHED"}
    for number, run in trials.items():
        history = client.get_metric_history(run.info.run_id, "val/loss_unweighted")
        steps = Counter(m.step for m in history)
        assert len(steps) == 8, "each of the eight epochs is there"
        assert max(steps.values()) == 1
        journal = (work / "multirun/o" / number / "journal.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in journal]
        n_logged = sum("val/loss_unweighted" in r.get("values", {}) for r in records)
        assert n_logged == 8
