"""Networks are published beside the sweep, and nothing that goes wrong with one harms it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from lzsweep.config import BEST_CHECKPOINT, WEIGHTS_FILE
from lzsweep.go.weights import write_weights
from lzsweep.sweep.forkserver import await_forkserver, start_forkserver
from lzsweep.sweep.publisher import Publisher
from lzsweep.sweep.trial import LOG_NAME
from lzsweep.train.export import read_checkpoint
from lzsweep.train.network import Network
from tests.train.test_export import checkpoint_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def forkserver() -> None:
    start_forkserver()
    await_forkserver()


@pytest.fixture
def done() -> list[Path]:
    return []


@pytest.fixture
def publisher(done: list[Path]) -> Iterator[Publisher]:
    publisher = Publisher(done.append)
    yield publisher
    with suppress(RuntimeError):  # a test closed it
        publisher.close()


def trained(folder: Path) -> Path:
    checkpoint = folder / BEST_CHECKPOINT
    checkpoint.parent.mkdir(parents=True)
    checkpoint_of(Network(1, 4), checkpoint)
    return folder


def process_of(publisher: Publisher) -> psutil.Process:
    assert publisher._process
    return psutil.Process(publisher._process.pid)


def test_the_best_network_is_published_and_told(
    publisher: Publisher, done: list[Path], tmp_path: Path
) -> None:
    folder = trained(tmp_path / "0")
    publisher.add(folder).result()
    write_weights(tmp_path / "same.txt.gz", read_checkpoint(folder / BEST_CHECKPOINT))
    assert (folder / WEIGHTS_FILE).read_bytes() == (tmp_path / "same.txt.gz").read_bytes()
    publisher.add(tmp_path / "without").result()
    assert done == [folder]
    assert not (tmp_path / "without").exists()


def test_only_what_nobody_came_to_is_missing(
    publisher: Publisher, done: list[Path], tmp_path: Path
) -> None:
    folders = [trained(tmp_path / str(number)) for number in range(3)]
    (folders[0] / WEIGHTS_FILE).write_text("of an earlier day")
    publisher.add(folders[1]).result()
    (folders[1] / WEIGHTS_FILE).unlink()
    publisher.add_missing(folders)
    publisher.close()
    assert done == [folders[1], folders[2]]
    assert (folders[0] / WEIGHTS_FILE).read_text() == "of an earlier day"


def test_one_that_can_wait_waits_but_not_for_the_end_of_the_worker(
    publisher: Publisher, done: list[Path], tmp_path: Path
) -> None:
    soon, late = (trained(tmp_path / name) for name in ("soon", "late"))
    began = time.monotonic()
    publisher.add(soon, after_s=1.0).result()
    assert time.monotonic() - began >= 1.0
    waiting = publisher.add(late, after_s=3600.0)
    publisher.close()
    assert waiting.done()
    assert done == [soon, late]


def test_what_goes_wrong_is_in_the_trials_log_and_no_other_is_harmed(
    publisher: Publisher, done: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad, good = trained(tmp_path / "0"), trained(tmp_path / "1")
    (bad / BEST_CHECKPOINT).write_bytes(b"no checkpoint")
    for folder in (bad, good):
        publisher.add(folder).result()
    assert done == [good]
    said = (bad / LOG_NAME).read_text()
    assert "no weights for the engine:" in said
    assert "must be a checkpoint, but is damaged or none" in said
    assert (good / LOG_NAME).read_text() == ""
    assert capfd.readouterr() == ("", "")


def test_no_network_is_lost_by_a_kill(
    publisher: Publisher, done: list[Path], tmp_path: Path
) -> None:
    folders = [trained(tmp_path / str(number)) for number in range(3)]
    publisher.add(folders[0]).result()
    process_of(publisher).kill()
    publisher.add(folders[1]).result()
    process_of(publisher).suspend()
    waiting = publisher.add(folders[2])
    process_of(publisher).kill()
    waiting.result()
    assert done == folders


def test_a_network_that_kills_its_process_is_given_up(
    publisher: Publisher,
    done: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    start, folder = publisher._start, trained(tmp_path / "0")

    def start_to_die() -> None:
        start()
        process_of(publisher).kill()

    monkeypatch.setattr(publisher, "_start", start_to_die)
    with caplog.at_level(logging.WARNING):
        publisher.add(folder).result()
    assert f"engine of {folder}: the process that writes it was killed" in caplog.text
    monkeypatch.setattr(publisher, "_start", start)
    publisher.add(folder).result()
    assert done == [folder]


def test_who_has_no_time_leaves_the_rest(
    publisher: Publisher, done: list[Path], tmp_path: Path
) -> None:
    folders = [trained(tmp_path / str(number)) for number in range(2)]
    publisher.add(folders[0]).result()
    process = process_of(publisher)
    publisher.hurry(0.0)
    publisher.hurry(60.0)  # no more time than it had
    publisher.add(folders[1]).result()
    publisher.close()
    assert done == [folders[0]]
    assert not process.is_running()
