"""The end of a study: `best.yaml`, the report, the description, and its run in MLflow closed."""

from __future__ import annotations

from pathlib import Path

from lzsweep.sweep.description import absolute, find_links, write_description
from lzsweep.sweep.findings import gather
from lzsweep.sweep.page import REPORT_NAME, write_report_aside
from lzsweep.sweep.report import write_best
from lzsweep.sweep.study import Study
from lzsweep.tracking.journal import Journal, Status
from lzsweep.tracking.runs import close_parent

STOPPED_BY_HAND = "by `lzsweep stop`"


def finish_study(study: Study, uri: str) -> dict[str, str]:
    """Write `best.yaml` and the report, and end the parent run, if there is one that is open.

    The last worker and every controller do it; to do it again changes nothing.

    Returns:
        Where MLflow's pages show the study: label -> address.
    """
    findings = gather(study, write_best(study))
    folder = Path(study.record.folder)
    paths = find_links(findings, uri)
    links = absolute(paths, uri)
    has_report = write_report_aside(findings, folder / REPORT_NAME, links)
    if study.record.parent_run_id is None:
        return links
    with Journal(folder) as journal:
        is_open = journal.status == "RUNNING"
        if is_open and has_report:
            journal.artifact(REPORT_NAME)
    if is_open:
        status: Status = "FINISHED" if findings.best else "FAILED"
        if findings.stopped:
            status = "KILLED" if findings.stopped == STOPPED_BY_HAND else "FAILED"
        close_parent(folder, uri, status, description=write_description(findings, paths))
    return links
