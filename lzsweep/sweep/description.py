"""A study in MLflow's pages: its description in Markdown, and links to the views of its runs.

The links lead to MLflow's compare view, which draws parallel coordinates over the runs' params
and metrics. Within MLflow's own pages they hold for whatever address serves them; elsewhere the
server's address stands before them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from lzsweep.sweep.findings import Findings
from lzsweep.sweep.record import Trial
from lzsweep.sweep.report import count_states, ranked, say_again, show_metric, show_params
from lzsweep.tracking.client import connect, reason
from lzsweep.tracking.outbox import run_id_of

MAX_COMPARED = 100
"""Runs in one view: MLflow's page grows slow beyond, and a tag holds 8,000 characters."""
MAX_ROWS = 20
LOCAL = "http://127.0.0.1:5000"
"""Where `lzsweep serve` shows a database that no server has."""

_LAYOUT = "workflowType=machine_learning"  # else MLflow shows its menus for language models

_logger = logging.getLogger(__name__)


def find_links(findings: Findings, uri: str) -> dict[str, str]:
    """Where MLflow's pages show this study: label -> path behind the server's address.

    Empty where the study has no runs or the server does not say.
    """
    parent = run_id_of(findings.record.folder)
    if parent is None:
        return {}
    try:
        experiment = connect(uri).get_run(parent).info.experiment_id
    except Exception as error:  # the links are an extra, whatever stands in their way
        _logger.warning("no links to MLflow's pages: %s", reason(error))
        return {}
    links = {"the study": f"#/experiments/{experiment}/runs/{parent}?{_LAYOUT}"}
    runs = run_ids(findings)
    if len(runs) > 1:
        what = "all trials" if len(runs) <= MAX_COMPARED else f"the best {MAX_COMPARED} trials"
        chosen = _encode(runs[:MAX_COMPARED])
        links[f"compare {what}"] = (
            f"#/compare-runs?runs={chosen}&experiments={_encode([experiment])}"
        )
    return links


def absolute(links: dict[str, str], uri: str) -> dict[str, str]:
    """The links with the server's address before them."""
    base = uri if uri.startswith("http") else LOCAL
    return {label: f"{base}/{path}" for label, path in links.items()}


def run_ids(findings: Findings) -> list[str]:
    """The runs of the trials, the best first."""
    folder = Path(findings.record.folder)
    ids = [t.run_id or run_id_of(folder / str(t.number)) for t in best_first(findings)]
    return [run for run in ids if run]


def best_first(findings: Findings) -> list[Trial]:
    """The trials, the best first, then those without a value."""
    complete = ranked(findings.record, findings.completed)
    best = [t for t in complete if t.number in findings.best]
    others = [t for t in complete if t.number not in findings.best]
    return [*best, *others, *(t for t in findings.trials if t.state != "complete")]


def write_description(findings: Findings, links: dict[str, str]) -> str:
    """The description of a study's run: question, space, best, table, commands, links."""
    record = findings.record
    wanted = [f"{d} {_code(m)}" for d, m in zip(record.directions, record.metrics, strict=True)]
    counts = count_states(findings.trials)
    states = ", ".join(f"{n} {state}" for state, n in counts.items() if n) or "no trial yet"
    parts = [
        f"**{', '.join(wanted)}** over " + (", ".join(map(_code, record.space)) or "one point"),
        " · ".join(f"[{label}]({path})" for label, path in links.items()),
        f"{states}; {findings.n_trials} trials wanted. The pictures are in `report/index.html`"
        " among the artifacts.",
        "\n".join(f"* {_code(name)}: {_code(text)}" for name, text in record.space.items()),
        _table(findings),
        "To sweep again: " + _code(findings.command),
        f"To {say_again(record)}: {_code(findings.again)}" if findings.again else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _table(findings: Findings) -> str:
    metrics = findings.record.metrics
    rows = ["| # | state | " + " | ".join(map(_code, metrics)) + " | parameters |"]
    rows.append("|---|---|" + "---|" * (len(metrics) + 1))
    trials = best_first(findings)
    for trial in trials[:MAX_ROWS]:
        values = [show_metric(v) for v in trial.values or ()] or [""] * len(metrics)
        mark = "**" if trial.number in findings.best else ""
        cells = [f"{mark}{trial.number}{mark}", trial.state, *values]
        rows.append(f"| {' | '.join(cells)} | {_code(show_params(trial.params)[:200])} |")
    if len(trials) > MAX_ROWS:
        rows.append(f"\n... and {len(trials) - MAX_ROWS} more")
    return "\n".join(rows)


def _code(text: str) -> str:
    """As code, so that nothing in a name is taken for Markdown, HTML or the edge of a cell."""
    plain = " ".join(text.split()).replace("`", "'").replace("|", "\\|")
    return f"`{plain[:500]}`" if plain else ""


def _encode(values: Sequence[str]) -> str:
    return quote(json.dumps(list(values), separators=(",", ":")), safe="")
