"""The report: a picture, or the reason why there is none; a page that needs nothing else."""

from __future__ import annotations

import base64
import multiprocessing.forkserver
import os
import re
import threading
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from PIL import Image

from lzsweep.sweep import forkserver, page, plots
from lzsweep.sweep.findings import Findings, utilisation
from lzsweep.sweep.page import (
    fingerprint_of,
    prepare_report,
    write_report,
    write_report_aside,
)
from lzsweep.sweep.plots import draw
from lzsweep.sweep.record import Record, Trial
from lzsweep.sweep.replica import make_replica
from lzsweep.sweep.space import Parameter, Space

BEGAN = datetime(2026, 1, 1)
NASTY = "<script>alert('$x$')</script>"

SPACE = Space(
    (
        Parameter("network", CategoricalDistribution(["small", "big"]), "small,big"),
        Parameter(
            "lr",
            FloatDistribution(1e-5, 1.0, log=True),
            "tag(log,interval(1e-5,1))",
            is_interval=True,
        ),
        Parameter(
            "optimizer.momentum",
            FloatDistribution(0.5, 0.9),
            "interval(0.5,0.9)",
            owner=("network", "big"),
            is_interval=True,
        ),
        Parameter("batch_size", CategoricalDistribution([64, 512]), "64,512"),
    )
)


def record(folder: Path, **changes: Any) -> Record:
    known: dict[str, Any] = {
        "space": SPACE.texts,
        "tree": SPACE.to_json(),
        "fixed": (f"tracking.experiment={NASTY}",),
        "settings": {},
        "metrics": ("val/loss_unweighted",),
        "directions": ("minimize",),
        "folder": str(folder),
        "conf": (),
        "config_name": "config",
        "tracking_uri": "sqlite:///mlflow.db",
        "command": ("sweeps=demo",),
        "cwd": "/",
        "code": {"lzsweep.version.torch": "2"},
        "created": 0.0,
    }
    return Record(**{**known, **changes})


def make_trials(n_metrics: int = 1) -> list[Trial]:
    """Twelve of them, conditional, every fourth pruned, the last failed; number 5 is a gap."""
    trials = []
    for number in [n for n in range(13) if n != 5]:
        big = number % 2 == 0
        params: dict[str, Any] = {
            "network": "big" if big else "small",
            "lr": 10.0 ** (-number / 3),
            "batch_size": 64 if number % 3 else 512,
        }
        if big:
            params["optimizer.momentum"] = 0.5 + number / 50
        state: Any = "failed" if number == 12 else "pruned" if number % 4 == 3 else "complete"
        value = 4.0 + (number * 7 % 11) / 10
        done = state == "complete"
        trials.append(
            Trial(
                number=number,
                attempt=2 if number == 6 else 1,
                retries=0,
                state=state,
                params=params,
                values=tuple([value, 900.0 / value][:n_metrics]) if done else None,
                metrics={},
                curve={step: value + 1 / step for step in range(1, 5 if done else 3)},
                ending="error" if number == 12 else state,
                reason=f"ValueError: {NASTY}" if number == 12 else "",
                run_id=None,
                started=BEGAN + timedelta(seconds=10 * (number // 2)),
                finished=BEGAN + timedelta(seconds=10 * (number // 2) + 9),
                train_s=8.0,
                worker=f"host:1/{number % 2}",
                row=number,
            )
        )
    return trials


def findings(
    folder: Path, trials: list[Trial], best: tuple[int, ...] = (), **changes: Any
) -> Findings:
    kept = tuple(trials)
    return Findings(
        NASTY, record(folder, **changes), 12, kept, kept, best, "", "lzsweep +best=best"
    )


def test_one_page_holds_all_pictures_and_shows_names_as_text(tmp_path: Path) -> None:
    log = tmp_path / "12" / "trial.log"
    log.parent.mkdir()
    log.write_text(f"before\n{NASTY}\n")
    page = write_report(findings(tmp_path, make_trials(), best=(0,)), tmp_path / "report")
    text = page.read_text()
    pictures = sorted(path.stem for path in page.parent.glob("*.png"))
    assert pictures == [
        "curves",
        "history",
        "importance",
        "parallel-coordinates",
        "slices",
        "timeline",
    ]
    inside = re.findall(r'src="data:image/png;base64,([^"]*)"', text)
    assert {base64.b64decode(png) for png in inside} == {
        path.read_bytes() for path in page.parent.glob("*.png")
    }
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 4, "the study's name, the reason, the log, an override"
    assert "http" not in re.sub('base64,[^"]*', "", text), "nothing is fetched"
    for path in page.parent.glob("*.png"):
        pixels = np.asarray(Image.open(path).convert("L"))
        assert pixels.shape[1] > 400
        assert 0.001 < (pixels < 128).mean() < 0.6, f"{path.stem} is empty"


def test_what_cannot_be_drawn_says_why(tmp_path: Path) -> None:
    nothing = {p.name: p.why for p in draw(findings(tmp_path, []))}
    assert nothing["timeline"] == "no trial has begun"
    assert nothing["curves"] == "no trial has validated yet"
    assert nothing["importance"] == "it takes 2 complete trials, and there are 0"
    failed = [replace(t, state="failed", values=None, curve={}) for t in make_trials()]
    drawn = {p.name for p in draw(findings(tmp_path, failed)) if p.png}
    assert drawn == {"timeline"}
    single = [replace(make_trials()[0], params={"lr": 0.1})]
    drawn = {p.name for p in draw(findings(tmp_path, single, space={"lr": "0.1"})) if p.png}
    assert drawn == {"history", "slices", "curves", "timeline"}
    unsearched = [replace(make_trials()[0], params={})]
    why = {p.name: p.why for p in draw(findings(tmp_path, unsearched, space={}))}
    assert why["slices"] == "nothing was searched"


def test_a_broken_picture_harms_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of Optuna's")

    monkeypatch.setattr("optuna.visualization.matplotlib.plot_slice", fail)
    pictures = {p.name: p for p in draw(findings(tmp_path, make_trials(), best=(0,)))}
    assert pictures["slices"].why == "ZeroDivisionError: of Optuna's"
    assert pictures["history"].png


def test_several_objectives_have_a_front(tmp_path: Path) -> None:
    two: dict[str, Any] = {
        "metrics": ("val/policy_loss", "flops"),
        "directions": ("minimize", "minimize"),
    }
    pictures = {p.name: p for p in draw(findings(tmp_path, make_trials(2), (0, 8), **two))}
    assert pictures["pareto-front"].png
    assert pictures["history-1"].png
    assert pictures["slices-2"].png
    assert pictures["curves-1"].why == "no trial has validated yet", "its journals are not there"
    assert {name for name, picture in pictures.items() if picture.why} == {"curves-1", "curves-2"}
    two["metrics"] = ("cost/flops", "val/policy_loss")
    names = [p.name for p in draw(findings(tmp_path, make_trials(2), (0, 8), **two))]
    assert "curves-2" in names
    assert "curves-1" not in names, "what a network costs has no curve"


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_replica_has_the_trials_numbers_and_scales(tmp_path: Path) -> None:
    replica = make_replica(findings(tmp_path, make_trials()))
    rows = {row.number: row for row in replica.trials if row.params}
    assert sorted(rows) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert rows[6].params["lr"] == pytest.approx(10.0**-2)
    assert rows[6].distributions["lr"].log  # type: ignore[attr-defined]
    assert not rows[6].distributions["optimizer.momentum"].log  # type: ignore[attr-defined]


@pytest.fixture
def figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """What was drawn, as it went into the PNGs: two log scales, one of whole numbers."""
    parameters = (
        *SPACE.parameters,
        Parameter("size", IntDistribution(1, 4096, log=True), "tag(log,range(1,4097))"),
    )
    space = Space(parameters)
    trials = [
        replace(t, params={**t.params, "size": 2 ** (t.number % 12 + 1)}) for t in make_trials()
    ]
    drawn: list[Figure] = []
    to_png = plots._to_png

    def keep(figure: Figure) -> bytes:
        figure.canvas.draw()  # which sets the texts of the ticks
        drawn.append(figure)
        return to_png(figure)

    monkeypatch.setattr(plots, "_to_png", keep)
    facts = findings(tmp_path, trials, best=(0,), space=space.texts, tree=space.to_json())
    names = [picture.name for picture in draw(facts) if picture.png]
    return dict(zip(names, drawn, strict=True))


LOG = {"lr": "log", "size": "log"}
"""The searched scale of a parameter; that of all others is linear."""


def test_slices_have_the_scale_that_was_searched(figures: dict[str, Figure]) -> None:
    panels = {axes.get_xlabel(): axes for axes in figures["slices"].axes if axes.get_xlabel()}
    assert set(panels) == {"network", "lr", "optimizer.momentum", "batch_size", "size"}
    for name, axes in panels.items():
        assert axes.get_xscale() == LOG.get(name, "linear"), name
        assert axes.get_yscale() == "linear"
    ticks = [float(t) for t in tick_texts(panels["lr"].xaxis)]
    assert ticks
    assert ticks == [10.0 ** round(np.log10(tick)) for tick in ticks], "decades"


def tick_texts(axis: Axis) -> list[str]:
    """Those that are seen."""
    low, high = sorted(axis.get_view_interval())
    pairs = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
    return [label.get_text() for place, label in pairs if low <= place <= high]


def test_parallel_coordinates_have_the_scale_that_was_searched(
    figures: dict[str, Figure],
) -> None:
    first, *others = figures["parallel-coordinates"].axes
    labels = [label.get_text().replace("\n", "") for label in first.get_xticklabels()]
    names = [label.removesuffix(" (log)") for label in labels]
    assert {name for name, label in zip(names, labels, strict=True) if name != label} == set(LOG)
    twins = dict(zip(names[1:], others[-len(names) + 1 :], strict=True))
    for name, axes in twins.items():
        assert axes.get_yscale() == LOG.get(name, "linear"), name
    for name in LOG:
        ticks = np.log10([float(text) for text in tick_texts(twins[name].yaxis)])
        assert len(ticks) >= 2
        values = [10.0 ** (-n / 3) for n in range(13)] if name == "lr" else [2.0, 4096.0]
        assert (
            np.log10(min(values)) - 0.1 <= min(ticks) < max(ticks) <= np.log10(max(values)) + 0.1
        )
    assert all(float(text) for text in tick_texts(twins["lr"].yaxis)), "plain digits"


def test_what_is_no_parameter_is_linear(figures: dict[str, Figure]) -> None:
    """Shares, steps, trials and hours have no scale that was searched."""
    for name in ("history", "curves", "importance", "timeline"):
        for axes in figures[name].axes:
            assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear"), name


def test_utilisation_counts_each_slot_to_its_workers_end(tmp_path: Path) -> None:
    trials = make_trials()
    spans = (6 * 10 + 9) + (6 * 10 + 9)  # of both slots, to the end of number 12
    assert utilisation(trials) == pytest.approx(12 * 9 / spans)
    assert utilisation([]) is None


def test_a_report_is_written_aside_once(tmp_path: Path) -> None:
    facts = findings(tmp_path, make_trials(), best=(0,))
    folder = tmp_path / "report"
    assert write_report_aside(facts, folder)
    page = folder / "index.html"
    first = page.stat().st_mtime_ns
    assert write_report_aside(facts, folder)
    assert page.stat().st_mtime_ns == first, "the same findings are drawn once"
    assert fingerprint_of(folder) == facts.fingerprint
    if not forkserver._preloaded:  # of an earlier test in this process
        server: Any = multiprocessing.forkserver._forkserver
        assert server._forkserver_pid is None, "trials would fork from one without torch"
    blocked = tmp_path / "file"
    blocked.touch()
    assert not write_report_aside(facts, blocked / "report")


def test_the_writer_of_a_report_may_be_ready_before(tmp_path: Path) -> None:
    facts = findings(tmp_path, make_trials(), best=(0,))
    here = os.getpid()
    prepare_report()
    writer, _ = page._prepared[here]
    prepare_report()
    assert page._prepared[here][0] is writer
    assert write_report_aside(facts, tmp_path / "report", lambda: {"all of it": "http://there"})
    assert not writer.is_alive() and here not in page._prepared
    assert "http://there" in (tmp_path / "report/index.html").read_text()

    prepare_report()  # one that dies meanwhile is replaced
    page._prepared[here][0].kill()
    page._prepared[here][0].join()
    assert write_report_aside(facts, tmp_path / "second")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "small_context", lambda: 1 / 0)
        prepare_report()  # the worker that has just claimed a trial goes on with it
    assert here not in page._prepared

    with forkserver._lock:  # a slot starts a trial
        preparing = threading.Thread(target=prepare_report)
        preparing.start()
        preparing.join(1)
        assert here not in page._prepared, "a start reads the exit codes of all others"
    preparing.join()
    page._prepared.pop(here)[1].close()

    prepare_report()  # one that nobody tells anything ends with whoever started it
    writer, tell = page._prepared.pop(here)
    tell.close()
    writer.join(60)
    assert writer.exitcode == 0
