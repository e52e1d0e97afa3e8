"""Progress of a study in the terminal: a live table, or plain lines where there is no terminal."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from lzsweep.sweep.record import Trial
from lzsweep.sweep.report import (
    count_states,
    show_metric,
    show_params,
    show_seconds,
    show_seeds,
    show_values,
    trial_table,
)
from lzsweep.sweep.storage import DATABASE_ERRORS
from lzsweep.sweep.study import Study

REFRESH_S = 1.0
SPEED_S = 24 * 3600.0
"""How far back the time left looks: trials take longer than the half minute that rich looks at."""


@contextmanager
def show_progress(study: Study, console: Console) -> Iterator[None]:
    """Show how a study goes, from a thread, while the body runs."""
    view = LiveTable(study, console) if console.is_terminal else _Lines(study, console)
    done = threading.Event()

    def loop() -> None:
        while not done.wait(REFRESH_S):
            try:
                view.update(study.trials())
            except DATABASE_ERRORS:
                continue  # the workers say so; the next look may succeed

    thread = threading.Thread(target=loop, name="progress", daemon=True)
    with view:
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            with suppress(*DATABASE_ERRORS):  # else it would stand before what the body raised
                view.update(study.trials())


class _Lines:
    """One line when a trial starts, one when it ends."""

    def __init__(self, study: Study, console: Console) -> None:
        self._study = study
        self._console = console
        self._shown = {(t.number, t.attempt): t.state for t in study.trials()}

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, trials: list[Trial]) -> None:
        for trial in trials:
            before = self._shown.get((trial.number, trial.attempt))
            is_begun = trial.state != "running" or trial.worker  # its parameters are there
            if before != trial.state and trial.state != "waiting" and is_begun:
                self._shown[(trial.number, trial.attempt)] = trial.state
                self._console.print(self._line(trial, trials), soft_wrap=True, markup=False)

    def _line(self, trial: Trial, trials: list[Trial]) -> str:
        head = f"#{trial.number} {trial.state}: {show_params(trial.params)}"
        if trial.state == "running":
            return head if trial.attempt == 1 else f"{head} (attempt {trial.attempt})"
        values = show_values(self._study.record.metrics, trial)
        notes = filter(None, (show_seeds(trial), *trial.reason.splitlines()[:1]))
        reason = "".join(f" ({note})" for note in notes)
        took = f" in {show_seconds(trial.train_s)}" if trial.train_s else ""
        n_done = sum(t.is_finished for t in trials)
        return (
            " ".join(filter(None, (head, values)))
            + f"{took}{reason} [{n_done}/{self._study.n_trials}]"
        )


class LiveTable(Live):
    """The table, a bar with the time left, and the best so far."""

    def __init__(self, study: Study, console: Console) -> None:
        self._study = study
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("trials, left"),
            TimeRemainingColumn(),
            console=console,
            speed_estimate_period=SPEED_S,
        )
        self._task = self._bar.add_task(study.name, total=study.n_trials)
        super().__init__(console=console, refresh_per_second=4, transient=False)
        self.update(study.trials())

    def update(self, renderable: object, *, refresh: bool = False) -> None:
        """Take over a new state of the trials."""
        if isinstance(renderable, list):
            renderable = self._render(renderable)
        super().update(renderable, refresh=refresh)  # type: ignore[arg-type]

    def _render(self, trials: list[Trial]) -> RenderableType:
        counts = count_states(trials)
        n_done = counts["complete"] + counts["pruned"] + counts["failed"]
        self._bar.update(self._task, completed=n_done, total=self._study.n_trials)
        n_rows = max(3, self.console.height - 5)
        return Group(
            trial_table(self._study, trials, n_rows), self._bar, Text(self._best(), style="bold")
        )

    def _best(self) -> str:
        best = self._study.best()
        if not best:
            return (
                "importing torch and Lightning takes a while; then the first trials start"
                if not self._study.trials()
                else "no complete trial yet"
            )
        if len(self._study.record.metrics) > 1:
            return f"Pareto front: {', '.join(f'#{t.number}' for t in best)}"
        value = (best[0].values or (float("nan"),))[0]
        metric = self._study.record.metrics[0]
        return (
            f"best: #{best[0].number} {metric}={show_metric(value)} {show_params(best[0].params)}"
        )
