"""`lzsweep doctor`: each check that can fail fails with a next step; here without any Slurm."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pynvml
import pytest

from lzsweep.commands import doctor
from tests.sweep.conftest import Cli, cli  # noqa: F401

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without GPU and Slurm, whose torch is there at once."""

    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    monkeypatch.setattr(doctor, "_devices", list)
    says_torch(monkeypatch, '["2.15", null, false, 0]')
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def says_torch(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.setattr(doctor, "_ASK_TORCH", f"print('''{words}''')")


def examine(cli: Cli, *overrides: str) -> tuple[int, dict[str, str], set[str]]:  # noqa: F811
    """Exit code, check -> its text, and the checks that are wrong."""
    code, out, err = cli("doctor", "--format", "json", *overrides)
    assert err == ""
    findings = json.loads(out)
    return code, {f["check"]: f["text"] for f in findings}, {
        f["check"] for f in findings if not f["ok"]
    }  # fmt: skip


def test_a_machine_that_is_ready(cli: Cli) -> None:  # noqa: F811
    code, found, wrong = examine(cli)
    assert (code, wrong) == (0, set())
    assert list(found) == ["GPU", "torch", "disk", "study database", "MLflow"]
    assert found["GPU"].startswith("none here, trainings run on the CPU")
    assert found["torch"] == "2.15, built for the CPU, sees 0 GPUs"
    assert not Path("lzsweep.db").exists(), "to look makes nothing"
    code, out, _ = cli("doctor")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["ok"] * 5


def test_servers_that_do_not_answer(
    cli: Cli,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LZSWEEP_STORAGE", "postgresql://me:secret@127.0.0.1:1/x")
    code, found, wrong = examine(cli, "tracking.uri=http://127.0.0.1:1")
    assert (code, wrong) == (1, {"study database", "MLflow"})
    assert "127.0.0.1" in found["study database"]
    assert "secret" not in found["study database"]
    assert "An MLflow server must answer at tracking.uri=http://127.0.0.1:1" in found["MLflow"]


def test_a_gpu_that_is_asked_for_must_be_there(cli: Cli) -> None:  # noqa: F811
    code, found, wrong = examine(cli, "trainer=gpu")
    assert (code, wrong) == (1, {"GPU"})
    assert found["GPU"].endswith("but trainer.accelerator=gpu; set trainer=cpu")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("raise ImportError('libcudart.so: no such file')", "ImportError: libcudart.so: no such"),
        ("import os; os._exit(1)", "it ended without a word; install it again: make install"),
        ("import time; time.sleep(60)", "importing it took more than 0.2 s"),
    ],
)
def test_a_torch_that_is_broken(
    cli: Cli,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    told: str,
) -> None:
    monkeypatch.setattr(doctor, "_ASK_TORCH", words)
    if "sleep" in words:
        monkeypatch.setattr(doctor, "_TORCH_S", 0.2)
    code, found, wrong = examine(cli)
    assert (code, wrong) == (1, {"torch"})
    assert told in found["torch"]


def test_a_torch_that_sees_no_gpu_of_those_there(
    cli: Cli,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "_devices", lambda: ["/dev/nvidia0"])
    code, found, wrong = examine(cli)
    assert (code, wrong) == (1, {"torch"})
    assert found["torch"].endswith("sees 0 GPUs of 1; install a build for this driver")


def test_a_disk_that_is_full_or_not_ours(
    cli: Cli,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    work: Path,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(9e9, 8e9, 1e9))
    code, found, wrong = examine(cli)
    assert (code, wrong) == (1, {"disk"})
    assert found["disk"] == f"1 GB free in {work}, but checkpoints want 5; make room"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert doctor._disk(work).text == f"{work} must be writable; change to another folder"


def test_a_cluster_needs_slurms_commands(cli: Cli) -> None:  # noqa: F811
    code, found, wrong = examine(cli, "hydra/launcher=slurm", "trainer=gpu")
    assert (code, wrong) == (1, {"cluster"}), "the GPUs are the nodes'"
    assert "there is no sbatch; go to the login node of the cluster" in found["cluster"]
