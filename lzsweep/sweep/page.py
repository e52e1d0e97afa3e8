"""The report of a study: one HTML page with its pictures inside, and the pictures beside it.

`FOLDER/report/index.html` and `FOLDER/report/NAME.png`. The page needs no other file and no
network. A report never stands in a sweep's way: it is made once all trials have ended, in a
process of its own that may take `REPORT_S` and no longer, and its failure is a warning.
"""

from __future__ import annotations

import base64
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import filelock
import jinja2
from markupsafe import Markup

from lzsweep.files import write_whole
from lzsweep.sweep.findings import Findings
from lzsweep.sweep.forkserver import exit_code, kill, small_context, start
from lzsweep.sweep.output import last_lines
from lzsweep.sweep.record import STATES, Trial
from lzsweep.sweep.seeds import log_of
from lzsweep.sweep.trial import ignore_signals

REPORT_NAME = "report"
PAGE_NAME = "index.html"
REPORT_S = 120.0
"""Time that a report at the end of a sweep may take; it takes seconds."""
FindLinks = Callable[[], Mapping[str, str]]
LOG_LINES = 15
MAX_FAILURES = 50

_logger = logging.getLogger(__name__)


def write_report(findings: Findings, folder: Path, find_links: FindLinks = dict) -> Path:
    """Draw and write the report.

    Args:
        findings: of the study.
        folder: where it goes; made where it is not there.
        find_links: gives label -> address on the MLflow server; asked when all is drawn.

    Returns:
        The page's path.

    Raises:
        OSError: the folder cannot be written.
    """
    from lzsweep.sweep.plots import draw  # matplotlib: a second or two

    pictures = draw(findings)
    for picture in pictures:
        path = folder / f"{picture.name}.png"
        if picture.png is None:
            path.unlink(missing_ok=True)  # of an earlier report
        else:
            write_whole(path, picture.png)
    page = _environment().get_template("page.html")
    links = list(find_links().items())
    text = page.render(findings=findings, pictures=pictures, links=links, **_texts(findings))
    write_whole(folder / PAGE_NAME, text.encode("utf-8", "replace"))
    return folder / PAGE_NAME


def write_report_aside(findings: Findings, folder: Path, find_links: FindLinks = dict) -> bool:
    """Write the report in a process of its own, unless the one that is there says the same.

    Two who end a study at once write one report. Nothing is raised: what goes wrong is a warning.

    Args:
        findings: of the study.
        folder: where it goes.
        find_links: as for `write_report`; asked in this process, while the other one draws.

    Returns:
        Whether the folder holds a report of these findings.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.with_name(f"{folder.name}.lock"), timeout=REPORT_S):
            if fingerprint_of(folder) != findings.fingerprint:
                _in_a_process(findings, folder, find_links)
    except (OSError, filelock.Timeout) as error:
        _logger.warning("no report was written: %s; see `lzsweep report`", error)
    return fingerprint_of(folder) == findings.fingerprint


def fingerprint_of(folder: Path) -> str | None:
    """Of which findings the report in a folder tells; None where there is none."""
    try:
        with (folder / PAGE_NAME).open(encoding="utf-8", errors="replace") as file:
            head = file.read(2000)
    except OSError:
        return None
    found = re.search(r'name="fingerprint" content="([0-9a-f]*)"', head)
    return found and found[1]


def prepare_report() -> None:
    """Start the process that writes the next report; its imports take as long as the drawing.

    Where it cannot be started nobody hears of it: whoever writes the report will see why.
    """
    with _preparing:
        if os.getpid() in _prepared:
            return
        try:
            _prepared[os.getpid()] = _start_writer()
        except Exception as error:  # a trial that was just claimed is not to be lost by it
            _logger.debug("no writer of the report yet: %s", error)


_Writer = tuple[BaseProcess, Connection]
_preparing = threading.Lock()
_prepared: dict[int, _Writer] = {}  # by the process that they belong to, which may fork


def _start_writer() -> _Writer:
    context = small_context()
    told, tell = context.Pipe(duplex=False)
    # A daemon, for one that is told nothing is not waited for at the end.
    child = context.Process(  # type: ignore[attr-defined]  # each context has one
        target=_write_when_told, args=(told,), name="report", daemon=True
    )
    start(child)
    told.close()
    return child, tell


def _write_when_told(told: Connection) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # how whoever started it ends it
    import lzsweep.sweep.plots  # noqa: F401

    with suppress(EOFError):  # nobody wants one
        findings, folder = told.recv()
        ignore_signals()
        write_report(findings, folder, told.recv)


def _in_a_process(findings: Findings, folder: Path, find_links: FindLinks) -> None:
    writer = _prepared.pop(os.getpid(), None)
    child, tell = writer if writer and exit_code(writer[0]) is None else _start_writer()
    try:
        with tell:
            tell.send((findings, folder.absolute()))
            tell.send(find_links())
        code = exit_code(child, REPORT_S)
        if code is None:
            _logger.warning("no report was written within %d s; see `lzsweep report`", REPORT_S)
        elif code:
            _logger.warning("the report failed; see `lzsweep report %s`", findings.name)
    finally:
        kill(child)


def _texts(findings: Findings) -> dict[str, Any]:
    from lzsweep.sweep.report import count_states, say_again, show_value

    record = findings.record
    counts = count_states(findings.trials)
    states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    failed = [t for t in findings.trials if t.state == "failed"]
    names = findings.names()
    return {
        "summary": f"{states or 'no trial yet'}; {findings.n_trials} trials wanted",
        "objectives": list(zip(record.metrics, record.directions, strict=True)),
        "code": sorted((k.rpartition(".")[2], v) for k, v in record.code.items()),
        "again": say_again(record),
        "names": names,
        "rows": [
            _row(findings, trial, [show_value(trial.params.get(n, "")) for n in names])
            for trial in findings.trials
        ],
        "failures": [_failure(Path(record.folder), trial) for trial in failed[:MAX_FAILURES]],
        "interruptions": [t for t in findings.attempts if t.ending == "infrastructure"],
    }


def _row(findings: Findings, trial: Trial, params: list[str]) -> dict[str, Any]:
    from lzsweep.sweep.report import show_metric, show_seconds

    seconds = None
    if trial.started and trial.finished:
        seconds = (trial.finished - trial.started).total_seconds()
    return {
        "number": trial.number,
        "state": trial.state,
        "is_best": trial.number in findings.best,
        "params": params,
        "results": [show_metric(v) for v in trial.values or ()]
        or [""] * len(findings.record.metrics),
        "time": show_seconds(seconds),
        "attempts": trial.attempt,
    }


def _failure(folder: Path, trial: Trial) -> dict[str, Any]:
    log = log_of(folder / str(trial.number))
    return {
        "number": trial.number,
        "reason": trial.reason,
        "log": str(log),
        "tail": "\n".join(last_lines(log, LOG_LINES)),
    }


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lzsweep.sweep", "."),
        autoescape=True,  # names and logs are text, whatever is in them
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["b64"] = lambda data: Markup(base64.b64encode(data).decode())
    return environment
