from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient

from lzsweep.errors import TrackingError
from lzsweep.tracking import delivery
from lzsweep.tracking.delivery import Sender, deliver, sync
from lzsweep.tracking.journal import Journal, read_records
from lzsweep.tracking.outbox import UNDELIVERABLE_NAME, is_delivered, run_id_of
from tests.tracking.conftest import Server
from tests.tracking.test_delivery import points, runs_of, the_run, write_run


def wait_for(condition: Callable[[], object], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "_MAX_BACKOFF_S", 0.5)


@pytest.fixture
def sick_uri() -> Iterator[str]:
    """A server that answers 500 to everything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(500)
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *args: object) -> None:
            pass

    sick = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=sick.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{sick.server_port}"
    sick.shutdown()


def test_journals_arrive_while_they_grow(uri: str, tmp_path: Path) -> None:
    sender = Sender(uri, interval_s=0.05)
    journals = [Journal(tmp_path / str(i)) for i in range(3)]
    for journal in journals:
        journal.start(experiment="grow", name=journal.folder.name)
        sender.add(journal.folder)
        sender.add(str(journal.folder))
    for step in range(50):
        for journal in journals:
            journal.metrics(step, {"train/loss": 1.0})
    wait_for(lambda: all(is_delivered(j.folder) for j in journals))
    assert the_run(uri, tmp_path / "0").info.status == "RUNNING"
    for journal in journals:
        journal.metrics(50, {"train/loss": 0.5})
        journal.end("FINISHED")
        journal.tags({"after": "the end"})
    assert sender.close() == []
    for journal in journals:
        assert [s for s, _ in points(uri, journal.folder, "train/loss")] == list(range(51))
        run = the_run(uri, journal.folder)
        assert (run.info.status, run.data.tags["after"]) == ("FINISHED", "the end")


@pytest.mark.slow
def test_server_killed_twice_in_mid_delivery_loses_nothing(
    own_server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journals = [Journal(tmp_path / str(i)) for i in range(2)]
    sender = Sender(own_server.uri, interval_s=0.01)
    for journal in journals:
        journal.start(experiment="killed", name="r", params={"p": 1})
        sender.add(journal.folder)
    stop = threading.Event()
    slowest = 0.0

    def train() -> None:
        nonlocal slowest
        step = 0
        while not stop.is_set():
            for journal in journals:
                began = time.perf_counter()
                journal.metrics(step, {"a": step, "b": step / 2})
                slowest = max(slowest, time.perf_counter() - began)
            step += 1
            time.sleep(0.005)

    training = threading.Thread(target=train)
    training.start()
    wait_for(lambda: all(run_id_of(j.folder) for j in journals))
    for n in (1, 2):
        own_server.kill()
        wait_for(lambda n=n: caplog.text.count("Training goes on") == n)  # type: ignore[misc]
        time.sleep(0.5)
        own_server.start()
        wait_for(lambda n=n: caplog.text.count("answers again") == n)  # type: ignore[misc]
    stop.set()
    training.join()
    for journal in journals:
        journal.end("FINISHED")
    assert sender.close(60) == []
    for journal in journals:
        n_steps = sum("a" in r.get("values", {}) for r, _ in read_records(journal.path))
        assert n_steps > 100
        for name in ("a", "b"):
            found = [s for s, _ in points(own_server.uri, journal.folder, name)]
            assert found == list(range(n_steps))
        assert not (journal.folder / UNDELIVERABLE_NAME).exists()
    assert len(runs_of(own_server.uri, "killed")) == 2
    assert slowest < 2, "an outage must not block whoever logs"
    assert caplog.text.count("Training goes on") == caplog.text.count("answers again") == 2


def test_hanging_server_delays_the_end_only_so_long(
    own_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    folder = write_run(tmp_path / "run", 500, experiment="hanging")
    own_server.pause()
    assert sync([tmp_path], own_server.uri).left == {folder: "it did not answer in time"}
    sender = Sender(own_server.uri)
    sender.add(folder)
    began = time.monotonic()
    assert sender.close(2.0) == [folder]
    assert time.monotonic() - began < 10
    own_server.go_on()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    # The answers that nobody waited for have been acted on: they must not count twice.
    wait_for(lambda: not sync([tmp_path], own_server.uri).left)
    assert len(runs_of(own_server.uri, "hanging")) == 1
    assert [s for s, _ in points(own_server.uri, folder, "lr")] == list(range(500))


def test_a_closed_sender_leaves_a_server_that_comes_back_to_sync(
    own_server: Server, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "run", 10)
    own_server.kill()
    sender = Sender(own_server.uri)
    sender.add(folder)
    assert sender.close(1.5) == [folder]  # between two tries, which are a second apart
    own_server.start()
    time.sleep(1)
    assert run_id_of(folder) is None
    assert sync([tmp_path], own_server.uri).delivered == (folder,)


def test_sick_server_is_an_outage_not_a_refusal(
    sick_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_run(tmp_path / "run")
    secret = sick_uri.replace("://", "://me:s3cret@")
    sender = Sender(secret, interval_s=0.05)
    sender.add(folder)
    wait_for(lambda: "Training goes on" in caplog.text)
    assert sender.close(1.5) == [folder]
    with pytest.raises(
        TrackingError, match=r"MLflow at http://\*\*\*@127.0.0.1:\d+ does not take"
    ):
        deliver(folder, secret)
    assert not (folder / UNDELIVERABLE_NAME).exists()
    assert "s3cret" not in caplog.text
    for file in folder.iterdir():
        assert "s3cret" not in file.read_text()


def test_folder_that_mlflow_refuses_does_not_hold_up_others(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from lzsweep.tracking.client import connect

    client = connect(server.uri)
    client.delete_experiment(client.create_experiment("in the bin"))
    refused = write_run(tmp_path / "a", experiment="in the bin")
    fine = write_run(tmp_path / "b", experiment="fine")
    sender = Sender(server.uri, interval_s=0.05)
    sender.add(refused)
    sender.add(fine)
    wait_for(lambda: is_delivered(fine))
    began = time.monotonic()
    assert sender.close(60) == [refused]
    assert time.monotonic() - began < 30
    assert "experiment 'in the bin' is deleted" in caplog.text


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a file whose upload a proxy always gives up on."""
    upload = MlflowClient.log_artifact

    def log_artifact(self: MlflowClient, run_id: str, local_path: str, *rest: Any) -> None:
        if Path(local_path).name == "stuck.bin":
            raise requests.ReadTimeout("504 Gateway Timeout")
        upload(self, run_id, local_path, *rest)

    monkeypatch.setattr(MlflowClient, "log_artifact", log_artifact)
    return "stuck.bin"


def test_a_file_that_never_arrives_holds_up_no_other_run(
    sqlite_uri: str, tmp_path: Path, stuck: str, caplog: pytest.LogCaptureFixture
) -> None:
    folders = [write_run(tmp_path / "runs" / name) for name in "abc"]
    for folder in folders[:2]:  # two of them, one after the other
        (folder / stuck).touch()
        with Journal(folder) as journal:
            journal.artifact(stuck)
    sender = Sender(sqlite_uri, interval_s=0.05)
    for folder in folders:
        sender.add(folder)
    wait_for(lambda: is_delivered(folders[2]))
    assert sender.close(0.5) == folders[:2]
    assert "MLflow does not take the run of" in caplog.text
    assert "Training goes on" not in caplog.text, "the server is well"
    last = write_run(tmp_path / "runs" / "d")
    summary = sync([tmp_path / "runs"], sqlite_uri)
    assert summary.delivered == (last,)
    assert set(summary.left) == set(folders[:2])
    assert all("504" in why for why in summary.left.values())


def test_sender_refuses_what_it_cannot_serve() -> None:
    with pytest.raises(TrackingError, match=r"must be http://HOST:PORT.*'ftp://\*\*\*@host'"):
        Sender("ftp://me:s3cret@host")
    assert Sender("http://127.0.0.1:9").close() == []
