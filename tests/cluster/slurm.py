"""A real Slurm of two nodes on this machine: daemons of our own, in one folder, on free ports."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd", "mariadb-install-db")
N_GPUS = 2
NODES = ("n1", "n2")

SLURM_CONF = """
ClusterName=lzsweep
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmUser=root
StateSaveLocation={folder}/state
AuthType=auth/munge
# The delay before a requeued job starts hangs on cred_expire.
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=2,sched_min_interval=100000,bf_interval=5
ReturnToService=2
MpiDefault=none
KillWait=30
MinJobAge=60
SlurmdTimeout=30
MaxArraySize=20
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
AccountingStoragePass={folder}/munge.sock
AccountingStorageEnforce=associations,limits,qos
GresTypes=gpu
NodeName=DEFAULT CPUs=4 RealMemory=64000 Gres=gpu:2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1_port}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2_port}
PartitionName=normal Nodes=n1,n2 Default=YES MaxTime=1-00:00:00 PriorityTier=1 State=UP
PartitionName=gpu Nodes=n1,n2 MaxTime=1-00:00:00 PriorityTier=1 State=UP
PartitionName=urgent Nodes=n1,n2 MaxTime=60 PriorityTier=10 PreemptMode=OFF State=UP
"""

GRES_CONF = "".join(f"NodeName={n} Name=gpu File={{folder}}/gpu[0-{N_GPUS - 1}]\n" for n in NODES)

SLURMDBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={dbd_port}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={maria_port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm
"""


def missing() -> str:
    """Why no cluster can be brought up here; empty if one can."""
    gone = [p for p in PROGRAMS if shutil.which(p, path=_path()) is None]
    if gone:
        return f"a cluster needs the programs {', '.join(gone)}"
    return "" if os.geteuid() == 0 else "a cluster needs root, to make device files"


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class Cluster:
    """Two nodes of four CPUs and two GPUs each, which are device files and no more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        ports = free_ports(5)
        names = ("ctld_port", "dbd_port", "n1_port", "n2_port", "maria_port")
        self._words = dict(zip(names, map(str, ports), strict=True)) | {
            "folder": str(folder),
            "host": socket.gethostname(),
            "password": secrets.token_hex(8),
        }

    def start(self) -> None:
        folder, words = self.folder, self._words
        folder.chmod(0o755)
        (folder / "state").mkdir()
        for n in range(N_GPUS):
            os.mknod(folder / f"gpu{n}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        for name, text in (
            ("slurm.conf", SLURM_CONF),
            ("gres.conf", GRES_CONF),
            ("slurmdbd.conf", SLURMDBD_CONF),
        ):
            (folder / name).write_text(text.format(**words))
        (folder / "slurmdbd.conf").chmod(0o600)
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (folder / "munge.key").chmod(0o600)
        self._start(
            "munged", "--foreground", "--force", f"--key-file={folder}/munge.key",
            f"--socket={folder}/munge.sock", f"--pid-file={folder}/munge.pid",
            f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed",
        )  # fmt: skip
        self._start_accounting()
        self._start("slurmctld", "-D")
        for node in NODES:
            (folder / f"spool-{node}").mkdir()
            self.start_node(node)
        self.until(lambda: self._n_idle() == len(NODES), "the nodes come up")

    def _start_accounting(self) -> None:
        folder = self.folder
        data = folder / "mariadb"
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root",
             "--auth-root-authentication-method=normal", "--skip-test-db"],
            env=self.env, check=True, capture_output=True,
        )  # fmt: skip
        self._start(
            "mariadbd", "--no-defaults", f"--datadir={data}", "--user=root",
            f"--socket={folder}/mariadb.sock", f"--port={self._words['maria_port']}",
            "--bind-address=127.0.0.1", f"--pid-file={folder}/mariadb.pid",
            "--innodb-buffer-pool-size=64M", "--skip-log-bin",
        )  # fmt: skip
        client = ["mariadb", "--no-defaults", f"--socket={folder}/mariadb.sock", "--user=root"]
        self.until(lambda: self._succeeds(*client, "-e", "select 1"), "the accounting database")
        password = self._words["password"]
        self.run(
            *client, "-e",
            f"create user slurm@'127.0.0.1' identified by '{password}';"
            "grant all on slurm.* to slurm@'127.0.0.1'; create database slurm",
        )  # fmt: skip
        self.env["SLURMDBD_CONF"] = str(folder / "slurmdbd.conf")
        self._start("slurmdbd", "-D")
        self.until(lambda: self._succeeds("sacctmgr", "-n", "show", "cluster"), "slurmdbd", 15)
        for command in (
            "add cluster lzsweep",
            "add account lab",
            "add user root account=lab",
            "add qos narrow set MaxSubmitJobsPerUser=23",
            "modify user root set qos+=narrow",
        ):
            self._succeeds("sacctmgr", "-i", *command.split())

    # What the tests do to it

    def start_node(self, node: str) -> None:
        self._start(f"slurmd-{node}", "slurmd", "-D", "-N", node)

    def restart_controller(self) -> None:
        self._end("slurmctld", signal.SIGTERM)
        self._start("slurmctld", "-D")
        self.until(lambda: self._succeeds("scontrol", "ping"), "slurmctld")

    def lose_node(self, node: str) -> None:
        """Kill a node as a power failure does: whoever could report an end goes first."""
        jobs = [p for p in self._processes() if _variable(p, "SLURMD_NODENAME") == node]
        steps = {a for p in jobs for a in p.parents() if a.name().startswith("slurmstepd")}
        self._end(f"slurmd-{node}", signal.SIGKILL)
        for process in [*steps, *jobs]:
            _kill(process)
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")

    def revive_node(self, node: str) -> None:
        self.start_node(node)
        self._succeeds("scontrol", "update", f"nodename={node}", "state=resume")
        states = ("idle", "mixed", "allocated")
        self.until(lambda: self._state(node) in states, f"{node} comes back", 60)

    def run(self, *command: str) -> str:
        """Run a command of Slurm's; its output."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def jobs(self) -> dict[str, tuple[str, str]]:
        """Job id -> (state, node) of all that is queued or runs."""
        lines = self.run("squeue", "--array", "-h", "-o", "%i %T %N").splitlines()
        fields = [[*line.split(), ""] for line in lines]
        return {f[0]: (f[1], f[2]) for f in fields}

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 240) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            for name, daemon in self._daemons.items():
                assert daemon.poll() is None, f"{name} died: {self._log(name)}"
            assert time.monotonic() < deadline, f"waited too long: {what}"
            time.sleep(0.25)

    def clear(self) -> None:
        """Cancel what is left, so that the next test finds an empty cluster."""
        self.run("scancel", "--user=root")
        self._succeeds("scancel", "--user=root", "--signal=KILL", "--full")
        self.until(lambda: not self.jobs() and self._n_idle() == len(NODES), "all jobs end")

    def stop(self) -> None:
        """End all that was started here, and nothing else."""
        self._succeeds("scancel", "--user=root")
        for process in self._processes():
            if process.name().startswith("slurmstepd") or _variable(process, "SLURM_JOB_ID"):
                _kill(process)
        for name in reversed(list(self._daemons)):
            self._end(name, signal.SIGKILL if name == "mariadbd" else signal.SIGTERM)

    # How it is done

    def _start(self, name: str, *command: str) -> None:
        program = command[0] if name.startswith("slurmd-") else name
        arguments = command[1:] if name.startswith("slurmd-") else command
        file = shutil.which(program, path=_path())
        assert file is not None
        with (self.folder / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                [file, *arguments],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _end(self, name: str, number: signal.Signals) -> None:
        daemon = self._daemons.pop(name)
        daemon.send_signal(number)
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _log(self, name: str) -> str:
        return (self.folder / f"{name}.out").read_text(errors="replace")[-2000:]

    def _succeeds(self, *command: str) -> bool:
        done = subprocess.run(command, env=self.env, capture_output=True, check=False)
        return done.returncode == 0

    def _n_idle(self) -> int:
        done = subprocess.run(
            ["sinfo", "-h", "-N", "-p", "normal", "-t", "idle", "-o", "%N"],
            env=self.env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return len(done.stdout.split())

    def _state(self, node: str) -> str:
        return self.run("sinfo", "-h", f"--nodes={node}", "--partition=normal", "-o", "%T").strip()

    def _processes(self) -> Iterator[psutil.Process]:
        """Jobs of ours and their steps: they, and nobody else, have our slurm.conf."""
        for process in psutil.process_iter():
            if process.pid != os.getpid() and (
                _variable(process, "SLURM_CONF") == self.env["SLURM_CONF"]
            ):
                yield process


def _variable(process: psutil.Process, name: str) -> str:
    try:
        return process.environ().get(name, "")
    except psutil.Error:
        return ""


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports: list[int] = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
