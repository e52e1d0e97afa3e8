"""Ray Tune at its best, run in the peers' environment: `python -m benchmarks.peers.raytune FILE`.

The real training function in actors that are kept from trial to trial (`reuse_actors`), with as
many trials pending as there are slots (Tune's own limit lets one run at a time on a small
machine), and without Tune's result files and dashboard. The configuration is composed once, and
each trial sets one value in it. FILE is JSON: overrides, key, values, slots, metric.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune

from lzsweep.config import conf_dir, make_loader, register_schemas
from lzsweep.sweep.composer import Composer


class Training(tune.Trainable):  # type: ignore[misc]  # Ray is not here when types are checked
    """An actor: its imports are done once, its configuration changes with the trial."""

    def setup(self, config: dict[str, Any], base: dict[str, Any], key: str, metric: str) -> None:
        self._called: float | None = time.time()
        from lzsweep.train.export import publish
        from lzsweep.train.fit import train

        self._publish = publish
        self._train, self._base, self._key, self._metric = train, base, key, metric

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.config = new_config
        return True

    def step(self) -> dict[str, Any]:
        config = copy.deepcopy(self._base)
        *groups, name = self._key.split(".")
        node = config
        for group in groups:
            node = node[group]
        node[name] = self.config["value"]
        folder = Path(self.config["folder"]) / f"{os.getpid()}-{time.monotonic_ns()}"
        folder.mkdir(parents=True)
        self._note_begin(folder / "called")
        metrics = self._train(config, folder=folder)
        self._publish(folder)
        return {"objective": metrics[self._metric], "done": True}

    def _note_begin(self, file: Path) -> None:
        # An actor's first trial began with the actor; see `benchmarks.clock`.
        file.touch()
        if self._called is not None:
            os.utime(file, (self._called, self._called))
            self._called = None


def main(path: Path) -> None:
    job = json.loads(path.read_text())
    register_schemas()
    loader = make_loader([f"file://{Path.cwd() / 'conf'}", f"file://{conf_dir()}"])
    base = Composer(loader)(job["overrides"])
    ray.init(num_cpus=job["slots"], include_dashboard=False, log_to_driver=False)
    trainable = tune.with_parameters(Training, base=base, key=job["key"], metric=job["metric"])
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={
            "value": tune.grid_search(job["values"]),
            "folder": str(Path.cwd() / "ray-trials"),
        },
        tune_config=tune.TuneConfig(
            metric="objective",
            mode="min",
            max_concurrent_trials=job["slots"],
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            storage_path=str(Path.cwd() / "ray"),
            verbose=1,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    results = tuner.fit()
    if results.num_errors:
        raise SystemExit(f"{results.num_errors} trials failed: {results.errors[0]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
