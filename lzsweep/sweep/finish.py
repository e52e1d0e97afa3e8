"""The end of a study: `best.yaml`, the report, the description, and its run in MLflow closed."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from lzsweep.sweep.description import absolute, find_links, write_description
from lzsweep.sweep.findings import gather
from lzsweep.sweep.page import REPORT_NAME, write_report, write_report_aside
from lzsweep.sweep.report import write_best
from lzsweep.sweep.runs import reveal_runs, settle_runs
from lzsweep.sweep.study import Study
from lzsweep.tracking.delivery import deliver_or_warn
from lzsweep.tracking.journal import Journal, Status
from lzsweep.tracking.outbox import is_delivered
from lzsweep.tracking.runs import close_parent

STOPPED_BY_HAND = "by `lzsweep stop`"


def renew_report(study: Study, uri: str) -> Path:
    """Draw the report of a study as it is now, in this process, and add it to the study's run.

    Returns:
        The page's path.

    Raises:
        OSError: the study's folder cannot be written.
    """
    findings = gather(study, write_best(study))
    folder = Path(study.record.folder)
    page = write_report(
        findings, folder / REPORT_NAME, lambda: absolute(find_links(findings, uri), uri)
    )
    if study.record.is_recorded:
        with Journal(folder) as journal:
            journal.artifact(REPORT_NAME)
        deliver_or_warn(folder, uri)
    return page


def finish_study(study: Study, uri: str) -> dict[str, str]:
    """Write `best.yaml` and the report, and end the runs that are open: of trials and the study.

    The last worker and every controller do it; to do it again changes nothing, but delivers what
    MLflow did not take before.

    Returns:
        Where MLflow's pages show the study: label -> address.
    """
    if study.record.is_recorded:
        settle_runs(study, uri)
    findings = gather(study, write_best(study))
    folder = Path(study.record.folder)

    @cache
    def paths() -> dict[str, str]:
        if study.record.is_recorded:
            reveal_runs(study, uri)  # of which some are not yet made
        return find_links(findings, uri)

    def links() -> dict[str, str]:
        return absolute(paths(), uri)

    has_report = write_report_aside(findings, folder / REPORT_NAME, links)
    if not study.record.is_recorded:
        return links()
    with Journal(folder) as journal:
        # Another command that was left closes it while trials change hands.
        is_open = journal.status == "RUNNING" or (
            journal.status == "KILLED" and study.is_done() and not findings.stopped
        )
        if is_open and has_report:
            journal.artifact(REPORT_NAME)
    if is_open:
        status: Status = "FINISHED" if findings.best else "FAILED"
        if findings.stopped:
            status = "KILLED" if findings.stopped == STOPPED_BY_HAND else "FAILED"
        close_parent(folder, uri, status, description=write_description(findings, paths()))
    elif not is_delivered(folder):
        deliver_or_warn(folder, uri)
    return links()
