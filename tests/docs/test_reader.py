"""A reader types what the pages print, in the order of the text, in one folder.

Of each command every word that is printed is run. `SMALL` and `ADDED` are what the test types
behind it, so that trainings take a second; `BEFORE` is what a reader would do first.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from mlflow.db import commands as mlflow_db

from lzsweep.train.build import BUNDLED_GAMES
from tests.docs.pages import Command, Page, read_pages
from tests.sweep.conftest import Cli

pytestmark = pytest.mark.slow

SMALL = (
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "tracking.system_metrics_s=0",
)
OURS = ("batch_size=16", "network.blocks=1", "network.filters=8")
"""Where neither is searched: a network of the same few weights whichever the page names."""
FOUR = ("study.n_trials=4", "hydra/sweeper/pruner=none", "worker.slots=2")
"""Of the studies that are looked at: their trial 3 is named."""
OLD = ("study.name=old", "study.n_trials=1", "study.enqueue=[{network: small, lr: 0.05}]")
"""Of the study that two others learn from: its best lies in their space."""
ADDED = {
    "lzsweep -m network=small,big 'lr=tag(log,interval(1e-4,1e-1))'": OLD,
    "lzsweep -m study.max_time=02:00:00 'lr=interval(0.01,1)'": ("study.name=STUDY", *FOUR),
    "lzsweep -m sweeps=demo study.name=demo": FOUR,
    "lzsweep resume STUDY study.n_trials=40": ("study.n_trials=5",),
    "lzsweep resume demo study.n_trials=40": ("study.n_trials=5",),
}
"""Names under which a study is met again, and budgets other than one trial."""


SAYS = {
    "lzsweep list": r"STUDY +\d",
    "lzsweep status STUDY --trial N": r"the end of \S+/STUDY/0/",
    "lzsweep best demo": r"lzsweep --config-dir multirun/demo \+best=best\n",
    "lzsweep report STUDY": r"multirun/STUDY/report/index.html\n",
    "lzsweep report demo -o public/demo": r"public/demo/index.html\n",
    "lzsweep -m network=small,big 'lr=interval(0.01,0.1)' study.warm_start=old": r"1 complete",
    "lzsweep export STUDY -o net.txt.gz": r"leelaz -w net.txt.gz\n",
    "lzsweep promote STUDY": r"models:/STUDY@champion now",
    "lzsweep promote demo --trial 3 --name go-small": r"models:/go-small@champion now",
    "data info --verify": r"games",
    "lzsweep -m sweeps=demo hydra/launcher=local worker.count=2": r"1 of 1 trials finished",
}
"""What a page says or shows of some of them, as it is printed."""


class Desk:
    """The folder of a reader, and what is typed there."""

    def __init__(self, folder: Path, cli: Cli) -> None:
        self.folder = folder
        self.url = ""
        self.problems: list[str] = []
        self._cli = cli
        self._swept: set[str] = set()

    def read(self, page: Page) -> None:
        for part in page.parts:
            if isinstance(part, tuple):
                self.write(*part)
            elif isinstance(part, str):
                exec(compile(part, page.name, "exec"), {})
            elif part.place == "reader":
                self.type(part)

    def write(self, name: str, body: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body)

    def type(self, command: Command) -> None:
        if before := BEFORE.get(command.text):
            before(self)
        program, *words = command.words
        if words[:1] == ["-m"] and command.text in self._swept:
            return  # a page later once more, with the same words
        self._swept.add(command.text)
        begun = time.monotonic()
        with pytest.MonkeyPatch.context() as patch:  # each command in a shell of its own
            for name in ("LZSWEEP_STORAGE", "MLFLOW_TRACKING_URI"):
                patch.delenv(name, raising=False)
            if program == "mlflow":
                runner: Any = CliRunner()
                done = runner.invoke(mlflow_db, words[1:])
                code, out, err = done.exit_code, done.output, str(done.exception)
            else:
                code, out, err = self._run(self.fill(command.text, words))
        os.chdir(self.folder)
        print(f"{time.monotonic() - begun:5.1f} s  {command.page}: {command.text}")
        if code != 0 or not re.search(SAYS.get(command.text, ""), out):
            self.problems.append(f"{command.page}: {command.text}\n{code} {out} {err}")

    def _run(self, words: list[str]) -> tuple[int, str, str]:
        try:
            return self._cli(*words)
        except SystemExit as end:  # Hydra's own flags end the process
            return int(end.code or 0), "", ""

    def fill(self, text: str, words: list[str]) -> list[str]:
        """The words typed: names that stand for something filled in, trainings made short."""
        given = [w.replace("https://example.org", self.url) for w in words]
        given = ["0" if w == "N" else w for w in given]
        searches = any(w.startswith("sweeps=") or "mine" in w.split(",") for w in words)
        small = SMALL if searches else (*SMALL, *OURS)
        if words[0] == "-m":
            return [*given, *small, *ADDED.get(text, ("study.n_trials=1",))]
        if "=" in words[0]:
            return [*given, *small]
        if words[0] == "--config-dir":
            return [*given, *SMALL]
        return [*given, *ADDED.get(text, ())]


def go_elsewhere(desk: Desk) -> None:
    """Where no databases are yet; a process keeps those open that it has used."""
    (desk.folder / "elsewhere").mkdir()
    shutil.move(desk.folder / "monday.tar", desk.folder / "elsewhere")
    os.chdir(desk.folder / "elsewhere")


def move(name: str) -> Callable[[Desk], None]:
    def away(desk: Desk) -> None:
        if (desk.folder / name).exists():
            (desk.folder / name).rename(desk.folder / f"{name}-{time.monotonic_ns()}")

    return away


BEFORE: dict[str, Callable[[Desk], None]] = {
    "serve restore monday.tar": go_elsewhere,
    "lzsweep serve backup monday.tar": move("monday.tar"),
    "lzsweep data export-chunks games/ -o chunks/": move("chunks"),
}


def write_games(folder: Path) -> None:
    """Games of strong players in the years that the pages name, as folder and as archives."""
    text = gzip.decompress(BUNDLED_GAMES.read_bytes()).decode()
    games = [f"(;{game}" for game in re.split(r"\(;", text)[1:41]]
    games = [g.replace("(;", "(;BR[7d]WR[6d]DT[2009-05-01]", 1) for g in games]
    (folder / "games").mkdir()
    for number, game in enumerate(games):
        (folder / "games" / f"{number}.sgf").write_text(game)
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr("all.sgf", "".join(games))


@pytest.fixture
def desk(work: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Desk]:
    write_games(work)
    (work / "site").mkdir()
    shutil.make_archive(str(work / "site/games"), "gztar", work, "games")
    handler = partial(SimpleHTTPRequestHandler, directory=str(work / "site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        desk = Desk(work, Cli(capsys))
        desk.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield desk
        server.shutdown()
        thread.join()


ELSEWHERE = ("extending.md", "cluster.md")
"""Pages that are read in a folder of their own, by tests of their own."""


def test_a_reader_gets_through_all_pages(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for page in read_pages():
        if page.name not in ELSEWHERE:
            desk.read(page)
    assert not desk.problems, "\n\n".join(desk.problems)
