"""The pictures of a report, as PNGs: Optuna's own where it has one, else ours.

matplotlib is imported here alone, and only its canvas without a window is used.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import optuna
from matplotlib import pyplot, ticker
from matplotlib.figure import Figure

from lzsweep.config import COSTS
from lzsweep.imports import stand_in
from lzsweep.sweep.findings import Findings, utilisation
from lzsweep.sweep.replica import make_replica

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

MAX_PARAMETERS = 12
"""Axes in one picture; more would not be readable."""
MAX_SLOTS = 60
MAX_TICKS = 7
_DPI = 110
_PLAIN = ticker.FuncFormatter(lambda value, _: f"{value:g}")
_COLORS = {
    "complete": "tab:blue",
    "pruned": "tab:orange",
    "failed": "tab:red",
    "interrupted": "0.75",
    "running": "tab:green",
}
_STYLE: Any = {
    "text.parse_math": False,  # a name may hold a dollar
    "figure.max_open_warning": 0,
}


@dataclass(frozen=True)
class Picture:
    """One picture, or the reason why there is none.

    Attributes:
        name: of its file, without `.png`.
        title: for people.
        note: how to read it.
        png: the file's bytes; None where it cannot be drawn.
        why: what stood in the way.
    """

    name: str
    title: str
    note: str
    png: bytes | None = None
    why: str = ""


class Undrawable(Exception):
    """There is not enough for this picture."""


@dataclass(frozen=True)
class _Plot:
    name: str
    title: str
    note: str
    draw: Callable[[], Figure]


def draw(findings: Findings) -> list[Picture]:
    """All pictures; what goes wrong with one is told in its place and harms no other."""
    matplotlib.use("Agg")
    pictures = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Optuna's experiments, of glyphs that no font has
        for plot in _plots(findings):
            try:
                with matplotlib.rc_context(_STYLE):  # Optuna sets a style for all that follows
                    png, why = _to_png(plot.draw()), ""
            except Undrawable as reason:
                png, why = None, str(reason)
            except Exception as error:  # the other pictures, and the sweep, are worth more
                png, why = None, f"{type(error).__name__}: {error}"
            pictures.append(Picture(plot.name, plot.title, plot.note, png, why))
    return pictures


def _plots(findings: Findings) -> Iterator[_Plot]:
    study = make_replica(findings)
    metrics = findings.record.metrics
    if len(metrics) > 1:
        yield _Plot(
            "pareto-front",
            "Pareto front",
            "Each point is a complete trial; of the red ones none is worse than another in all"
            " objectives.",
            lambda: _pareto_front(findings, study),
        )
    for n, metric in enumerate(metrics):
        end, of = (f"-{n + 1}", f": {metric}") if len(metrics) > 1 else ("", "")
        yield _Plot(
            f"history{end}",
            f"Optimisation history{of}",
            "The objective of each complete trial; for a single objective, the best so far.",
            partial(_history, findings, study, n),
        )
        yield _Plot(
            f"slices{end}",
            f"Slices{of}",
            "The objective over one parameter at a time; later trials are darker.",
            partial(_slices, findings, study, n),
        )
        if metric in COSTS:
            continue  # the same at each validation
        yield _Plot(
            f"curves{end}",
            f"Learning curves{of}",
            "The objective at each validation. Pruned trials are dashed and end in a cross.",
            partial(_curves, findings, n),
        )
    yield _Plot(
        "importance",
        "Parameter importance",
        "How much of the difference between good and bad trials each parameter explains"
        f" (PED-ANOVA), from {len(findings.completed)} complete trials: few trials, rough bars.",
        lambda: _importance(findings, study),
    )
    yield _Plot(
        "parallel-coordinates",
        "Parallel coordinates",
        "Each line is a complete trial; the darker, the better. What was searched on a"
        " logarithmic scale is shown on one.",
        lambda: _parallel(findings, study),
    )
    yield _Plot(
        "timeline",
        "Timeline of the slots",
        "Each bar is an attempt at the trial of that number; white is time without training.",
        lambda: _timeline(findings),
    )


def _need_complete(findings: Findings, n: int = 1) -> None:
    if len(findings.completed) < n:
        there = len(findings.completed)
        raise Undrawable(f"it takes {n} complete trials, and there are {there}")


def _shown(findings: Findings) -> list[str]:
    names = {name for trial in findings.completed for name in trial.params}
    shown = [name for name in findings.names() if name in names][:MAX_PARAMETERS]
    if not shown:
        raise Undrawable("nothing was searched")
    return shown


def _history(findings: Findings, study: optuna.Study, n: int) -> Figure:
    from optuna.visualization.matplotlib import plot_optimization_history

    _need_complete(findings)
    metric = findings.record.metrics[n]
    axes = plot_optimization_history(study, target=_target(findings, n), target_name=metric)
    figure = _figure_of(axes, 8, 4)
    axes.set_title("")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.legend(loc="best")
    return figure


def _target(findings: Findings, n: int) -> Callable[[Any], float] | None:
    # For one objective Optuna knows the direction, and with it the best so far.
    return None if len(findings.record.metrics) == 1 else lambda row: row.values[n]


def _slices(findings: Findings, study: optuna.Study, n: int) -> Figure:
    from optuna.visualization.matplotlib import plot_slice

    _need_complete(findings)
    shown = _shown(findings)
    metric = findings.record.metrics[n]
    made: Any = plot_slice(study, shown, target=_target(findings, n), target_name=metric)
    panels: list[Axes] = list(np.atleast_1d(made))
    figure = _figure_of(panels[0], max(5.0, 2.9 * len(panels) + 1), 4)
    figure.suptitle("")
    for axes in panels:
        axes.set_title("")
        ticks = [text.get_text() for text in axes.get_xticklabels()]
        if any(tick.startswith("'") for tick in ticks):  # Optuna shows the repr of a choice
            plain = [tick.strip("'") for tick in ticks]
            axes.set_xticks(
                range(len(plain)), plain, rotation=30 * (max(map(len, plain)) > 6), ha="right"
            )
        else:
            values = _values(findings, axes.get_xlabel())
            _set_ticks(axes.xaxis, axes.get_xscale(), values, n_ticks=4)
        axes.tick_params(axis="x", labelsize=8)
    return figure


def _values(findings: Findings, name: str) -> list[Any]:
    """The different values of a parameter, sorted."""
    found = {trial.params[name] for trial in findings.completed if name in trial.params}
    return sorted(found, key=lambda value: (isinstance(value, str), value))


def _set_ticks(axis: Axis, scale: str, values: Sequence[Any], n_ticks: int = MAX_TICKS) -> None:
    """Few numbers, in plain digits: the values themselves where these are few and whole."""
    if len(values) <= MAX_TICKS and all(isinstance(v, int) for v in values):
        axis.set_major_locator(ticker.FixedLocator(_apart(values, n_ticks)))
    elif scale == "log":
        subs = (1.0,) if values[-1] > 100 * values[0] else (1.0, 3.0)
        axis.set_major_locator(ticker.LogLocator(subs=subs, numticks=n_ticks))
    else:
        axis.set_major_locator(ticker.MaxNLocator(min(n_ticks, 4)))
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(_PLAIN)


def _apart(values: Sequence[int], n_ticks: int) -> list[int]:
    """The values without those that would stand in each other's way."""
    gap = (values[-1] - values[0]) / n_ticks
    kept = [values[0]]
    for value in values[1:]:
        if value - kept[-1] >= gap:
            kept.append(value)
    return kept


def _importance(findings: Findings, study: optuna.Study) -> Figure:
    from optuna.visualization.matplotlib import plot_param_importances

    with stand_in("sklearn", None):  # seconds, for the forests of other evaluators
        from optuna.importance import PedAnovaImportanceEvaluator

    _need_complete(findings, 2)
    names = _shown(findings)
    if len({tuple(t.params.get(name) for name in names) for t in findings.completed}) < 2:
        raise Undrawable("all complete trials have the same parameters")
    axes = plot_param_importances(study, PedAnovaImportanceEvaluator())
    n_bars = len(names) * len(findings.record.metrics)
    figure = _figure_of(axes, 8, max(2.5, 1.2 + 0.4 * n_bars))
    axes.set_title("", loc="left")
    axes.set_ylabel("")
    axes.set_xlabel("importance")
    if len(findings.record.metrics) == 1:
        axes.legend().remove()
    return figure


def _parallel(findings: Findings, study: optuna.Study) -> Figure:
    from optuna.visualization.matplotlib import plot_parallel_coordinate

    _need_complete(findings, 2)
    shown = _shown(findings)
    metrics = findings.record.metrics
    axes = plot_parallel_coordinate(study, shown, target_name=metrics[0])
    figure = _figure_of(axes, max(7.0, 1.9 * (len(shown) + len(metrics)) + 2), 4.8)
    axes.set_title("")
    axes.grid(visible=False)
    axes.set_facecolor("white")
    axes.collections[0].set_cmap("viridis" if _wants_low(findings) else "viridis_r")
    axes.collections[0].set(alpha=0.8, linewidth=1.3)
    colorbar = axes.collections[0].colorbar
    if colorbar is not None:  # its own ticks are rounded until two are the same
        colorbar.ax.yaxis.set_major_formatter(_PLAIN)
    names = [text.get_text() for text in axes.get_xticklabels()]  # in Optuna's own order
    labels = [_broken(f"{n} (log)" if findings.is_log(n) else n) for n in names]
    axes.set_xticks(range(len(names)), labels, rotation=0)
    twins = figure.axes[-len(names) + 1 :]
    for name, twin in zip(names[1:], twins, strict=True):
        twin.grid(visible=False)
        values = _values(findings, name)  # none of a further objective
        if values and not any(isinstance(v, str) for v in values) and _in_all(findings, name):
            _set_ticks(twin.yaxis, twin.get_yscale(), values)
        for tick in twin.get_yticklabels():
            tick.set_bbox({"facecolor": "white", "alpha": 0.75, "pad": 0.5, "edgecolor": "none"})
            tick.set_fontsize(8)
    return figure


def _wants_low(findings: Findings) -> bool:
    return len(findings.record.metrics) > 1 or findings.record.directions[0] == "minimize"


def _in_all(findings: Findings, name: str) -> bool:
    # Optuna shows the trials that lack a parameter at a tick "None" of its own.
    return all(name in t.params for t in findings.completed)


def _broken(name: str, width: int = 14) -> str:
    """A long name in two lines, broken at one of its own separators."""
    if len(name) <= width:
        return name
    places = [i + 1 for i, sign in enumerate(name[:-1]) if sign in "./_ -"]
    middle = min(places, key=lambda i: abs(i - len(name) / 2), default=len(name) // 2)
    return f"{name[:middle]}\n{name[middle:]}"


def _pareto_front(findings: Findings, study: optuna.Study) -> Figure:
    from optuna.visualization.matplotlib import plot_pareto_front

    _need_complete(findings)
    metrics = list(findings.record.metrics)
    if len(metrics) > 3:
        raise Undrawable(f"a front of {len(metrics)} objectives has no picture, only the table")
    axes = plot_pareto_front(study, target_names=metrics)
    axes.set_title("")
    handles, labels = axes.get_legend_handles_labels()
    words = {"Trial": "complete", "Best Trial": "front"}  # of a front none is the best
    axes.legend(handles, [words.get(label, label) for label in labels])
    if len(metrics) == 2:
        for trial in findings.trials:
            if trial.number in findings.best and trial.values:
                axes.annotate(
                    f"#{trial.number}",
                    (trial.values[0], trial.values[1]),
                    xytext=(4, 4),
                    textcoords="offset points",
                    fontsize=8,
                )
    return _figure_of(axes, 7, 5)


def _curves(findings: Findings, n: int) -> Figure:
    curves = {trial.number: findings.curve(trial, n) for trial in findings.trials}
    finite = [v for curve in curves.values() for v in curve.values() if math.isfinite(v)]
    if not finite:
        raise Undrawable("no trial has validated yet")
    figure = Figure(figsize=(8, 4.6))
    axes = figure.subplots()
    looks: dict[str, dict[str, Any]] = {
        "complete": {"alpha": 0.6, "lw": 1.2},
        "pruned": {"ls": "--", "alpha": 0.8, "lw": 1.0},
        "failed": {"ls": ":", "lw": 1.2},
        "running": {"lw": 1.2},
    }
    front = "front" if len(findings.record.metrics) > 1 else ""
    labelled = set()
    for trial in findings.trials:
        curve = sorted((s, v) for s, v in curves[trial.number].items() if math.isfinite(v))
        if not curve or trial.state not in looks:
            continue
        is_best = trial.number in findings.best
        look = {"lw": 2.4, "color": "black", "zorder": 3} if is_best else looks[trial.state]
        label = (front or f"best: #{trial.number}") if is_best else trial.state
        steps, values = zip(*curve, strict=True)
        axes.plot(
            steps,
            values,
            marker="." if len(steps) == 1 else None,
            label=None if label in labelled else label,
            **{"color": _COLORS[trial.state], **look},
        )
        labelled.add(label)
        if trial.state in ("pruned", "failed"):
            sign = {"pruned": "x", "failed": "+"}[trial.state]
            axes.plot(steps[-1], values[-1], sign, color=_COLORS[trial.state])
    _limit(axes, finite)
    axes.set_xlabel(findings.record.resource if len(findings.record.metrics) == 1 else "steps")
    axes.set_ylabel(findings.record.metrics[n])
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize=8)
    return figure


def _limit(axes: Axes, values: Sequence[float]) -> None:
    """Leave out what is far off, so that one bad trial does not flatten all the others."""
    low, high = np.percentile(values, [2, 98])
    quarter, three = np.percentile(values, [25, 75])
    reach = 4 * (three - quarter)
    bottom, top = max(low, quarter - reach), min(high, three + reach)
    n_out = sum(not bottom <= v <= top for v in values)
    if (max(values) - min(values)) > 3 * (top - bottom) > 0:
        margin = 0.05 * (top - bottom)
        axes.set_ylim(bottom - margin, top + margin)
        axes.set_title(f"{n_out} values lie outside", fontsize=9, loc="right")


def _timeline(findings: Findings) -> Figure:
    bars = [t for t in findings.attempts if t.worker and t.started]
    if not bars:
        raise Undrawable("no trial has begun")
    slots = list(dict.fromkeys(sorted(str(t.worker) for t in bars)))
    if len(slots) > MAX_SLOTS:
        raise Undrawable(f"{len(slots)} slots worked, too many for one picture")
    began = min(t.started for t in bars if t.started)
    last = max((t.finished or t.started for t in bars if t.started), default=began)
    scale, unit = _time_unit((last - began).total_seconds())
    figure = Figure(figsize=(9, 1.4 + 0.34 * len(slots)))
    axes = figure.subplots()
    span = max((last - began).total_seconds(), 1e-9) / scale
    for trial in bars:
        assert trial.started is not None
        start = (trial.started - began).total_seconds() / scale
        width = ((trial.finished or last) - trial.started).total_seconds() / scale
        kind = "interrupted" if trial.ending == "infrastructure" else trial.state
        place = slots.index(str(trial.worker))
        color = _COLORS.get(kind, "0.75")
        axes.barh(place, width, left=start, height=0.8, color=color, edgecolor="white", lw=0.6)
        if width > 0.012 * span * (1 + len(str(trial.number))):
            axes.text(
                start + width / 2,
                place,
                str(trial.number),
                ha="center",
                va="center",
                fontsize=7,
                color="white",
            )
        kinds = axes.get_legend_handles_labels()[1]
        if kind not in kinds:
            axes.barh(0, 0, color=color, label=kind)
    axes.set_yticks(range(len(slots)), slots, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"{unit} since the first trial began")
    used = utilisation(findings.attempts)
    if used is not None:
        axes.set_title(f"slots were busy {100 * used:.1f} % of their time", fontsize=9, loc="left")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=5, fontsize=8, frameon=False)
    return figure


def _time_unit(seconds: float) -> tuple[float, str]:
    for scale, unit in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds > 3 * scale:
            return scale, unit
    return 1.0, "seconds"


def _figure_of(axes: Axes, width: float, height: float) -> Figure:
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    figure.set_size_inches(width, height)
    return figure


def _to_png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI, bbox_inches="tight", facecolor="white")
    pyplot.close(figure)
    return file.getvalue()
