"""`serve --shared` over TLS and an existing PostgreSQL, whose password is in PGPASSFILE alone."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from mlflow import MlflowClient

from benchmarks.shared import NOBODY, SharedServer, as_ordinary_user, free_port, open_folder
from lzsweep.tracking.postgres import find_program
from lzsweep.tracking.tls import PASSWORD as PASSWORD_VARIABLE
from tests.sweep.conftest import Cli
from tests.sweep.test_sweep import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.server]
PASSWORD = "a:b \\c%40'é"
"""What libpq, a URL, an ini file and SQL might each take for something of their own."""
KEY_PASSWORD = "of the key: é"
CIPHERS = "ECDHE-ECDSA-AES256-GCM-SHA384"
"""The one cipher that is taken below TLS 1.3."""


@dataclass(frozen=True)
class Existing:
    """A PostgreSQL that somebody else runs, and a role of ours that may make databases."""

    port: int
    passfile: Path

    def connect(self, database: str) -> psycopg.Connection:
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            dbname=database,
            user="lab",
            password=PASSWORD,
            autocommit=True,
        )

    @property
    def answers(self) -> bool:
        try:
            self.connect("postgres").close()
        except psycopg.OperationalError:
            return False
        return True


def give_away(path: Path) -> Path:
    path.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    return path


def run_program(name: str, *arguments: str) -> list[str]:
    return as_ordinary_user(str(find_program(name)), *arguments)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def existing(folder: Path) -> Iterator[Existing]:
    port = free_port()
    secret, passfile = folder / "pw", folder / "their.pgpass"
    secret.write_text(PASSWORD)
    quoted = PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
    passfile.write_text(f"127.0.0.1:{port}:*:lab:{quoted}\n")
    for path in (secret, passfile):
        give_away(path)
    data = str(folder / "their-data")
    who = ["--username=lab", f"--pwfile={secret}", "--auth=scram-sha-256", "--encoding=UTF8"]
    subprocess.run(
        run_program("initdb", *who, f"--pgdata={data}"),
        check=True,
        cwd=folder,
        capture_output=True,
    )
    where = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
    with (folder / "their.log").open("wb") as log:
        process = subprocess.Popen(
            run_program("postgres", "-D", data, *where), stdout=log, stderr=log, cwd=folder
        )
    there = Existing(port, passfile)
    wait_for(lambda: there.answers)
    yield there
    process.terminate()
    process.wait()


def make_certificate(folder: Path, name: str, password: str = "") -> tuple[Path, Path]:
    """A key, by a password if there is one, and the certificate that it signs for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password.encode())
        if password
        else serialization.NoEncryption(),
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    paths = folder / f"{name}.key", folder / f"{name}.pem"
    for path, text in zip(paths, (private, public), strict=True):
        path.write_bytes(text)
        give_away(path)
    return paths


def test_over_tls_and_an_existing_postgresql(
    existing: Existing, folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = make_certificate(folder, "server", KEY_PASSWORD)
    client_key, client_certificate = make_certificate(folder, "client")
    both = folder / "both.pem"
    both.write_bytes(client_key.read_bytes() + client_certificate.read_bytes())
    tls = [
        *("--ssl-keyfile", str(key), "--ssl-certfile", str(certificate)),
        *("--ssl-ca-certs", str(client_certificate), "--ssl-cert-reqs", "2"),
        *("--ssl-version", str(int(ssl.PROTOCOL_TLS_SERVER)), "--ssl-ciphers", CIPHERS),
    ]
    postgres = ["--postgres", f"postgresql://lab@127.0.0.1:{existing.port}"]
    secrets = {"PGPASSFILE": str(existing.passfile), PASSWORD_VARIABLE: KEY_PASSWORD}
    server = SharedServer(folder, *postgres, *tls, environment=secrets)
    try:
        server.start()
        assert server.uri == f"https://127.0.0.1:{server.port}"
        storage = f"postgresql://lab@127.0.0.1:{existing.port}/lzsweep"
        assert server.environment["LZSWEEP_STORAGE"] == storage
        assert not (server.home / "postgres").exists()
        check_who_gets_in(server, certificate, both)
        check_ciphers(server, certificate, both)
        check_a_run(server, certificate, both, cli, monkeypatch)
        check_password_is_nowhere(server, existing)
        assert server.stop() == 0
        check_backup(server, existing, postgres)
    finally:
        server.kill()


def check_who_gets_in(server: SharedServer, certificate: Path, both: Path) -> None:
    url = f"{server.uri}/api/2.0/mlflow/experiments/search?max_results=1"
    admin = ("admin", server.secrets["admin"])
    known: Any = {"verify": str(certificate), "cert": str(both), "timeout": 30}
    assert requests.get(url, auth=admin, **known).ok
    assert requests.get(url, auth=("admin", "wrong"), **known).status_code == 401
    with pytest.raises(requests.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        requests.get(url, auth=admin, cert=str(both), timeout=30)
    with pytest.raises(
        requests.exceptions.ConnectionError, match=r"(?i)aborted|certificate.required"
    ):
        requests.get(url, auth=admin, verify=str(certificate), timeout=30)
    with pytest.raises(requests.exceptions.ConnectionError, match="Connection"):
        requests.get(url.replace("https", "http"), auth=admin, timeout=30)


def check_ciphers(server: SharedServer, certificate: Path, both: Path) -> None:
    def shake_hands(ciphers: str) -> tuple[str, str, int] | None:
        context = ssl.create_default_context(cafile=certificate)
        context.load_cert_chain(both)
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # above it has ciphers of its own
        context.set_ciphers(ciphers)
        with (
            socket.create_connection(("127.0.0.1", server.port)) as line,
            context.wrap_socket(line, server_hostname="127.0.0.1") as safe,
        ):
            return safe.cipher()

    assert (shake_hands("ECDHE-ECDSA-AES128-GCM-SHA256:" + CIPHERS) or ("",))[0] == CIPHERS
    with pytest.raises(OSError, match=r"(?i)eof|handshake|reset"):
        shake_hands("ECDHE-ECDSA-AES128-GCM-SHA256")


def check_a_run(
    server: SharedServer, certificate: Path, both: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
    monkeypatch.setenv("MLFLOW_TRACKING_CLIENT_CERT_PATH", str(both))
    client = MlflowClient(server.uri)
    run = client.create_run(client.create_experiment("tls")).info.run_id
    client.log_metric(run, "m", 1.0)
    client.log_text(run, "text", "a.txt")
    assert client.get_run(run).data.metrics == {"m": 1.0}
    assert [f.path for f in client.list_artifacts(run)] == ["a.txt"]
    code, out, err = cli("serve", "health")
    assert (code, out) == (0, f"{server.uri} answers\n"), err


def check_password_is_nowhere(server: SharedServer, existing: Existing) -> None:
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        assert not any(secret in words for secret in (PASSWORD, KEY_PASSWORD))
    for path in (*server.home.rglob("*"), server.log):
        text = path.read_bytes() if path.is_file() else b""
        assert not any(secret.encode() in text for secret in (PASSWORD, KEY_PASSWORD)), path
    with existing.connect("postgres") as database:
        names = {name for (name,) in database.execute("SELECT datname FROM pg_database")}
    assert {"mlflow", "mlflow_auth", "lzsweep"} <= names


def check_backup(server: SharedServer, existing: Existing, postgres: list[str]) -> None:
    archive = str(server.home.parent / "saved.tar")
    done = server.run("backup", archive, *postgres)
    assert done.returncode == 0, done.stderr
    with existing.connect("mlflow") as database:
        database.execute("DELETE FROM latest_metrics")
    back = server.run("restore", archive, *postgres)
    assert back.returncode == 0, back.stderr
    with existing.connect("mlflow") as database:
        assert database.execute("SELECT key FROM latest_metrics").fetchall() == [("m",)]


def test_mistakes_are_one_line(
    cli: Cli, work: Path, existing: Existing, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = make_certificate(work, "server")
    locked, its = make_certificate(work, "locked", KEY_PASSWORD)
    _, other = make_certificate(work, "other")
    (work / "text.pem").write_text("no certificate")

    def refused(*arguments: str) -> str:
        code, out, err = cli("serve", "--port", "0", *arguments)
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1, err
        return err

    pair = ("--ssl-keyfile", str(key), "--ssl-certfile")
    whole = (*pair, str(certificate))
    assert "there is no no.pem" in refused(*pair, "no.pem")
    for alone in (("--ssl-keyfile", str(key)), ("--ssl-ciphers", CIPHERS)):
        assert f"takes --ssl-certfile too, but got {alone[0]} alone" in refused(*alone)
    for wrong in (str(other), "text.pem"):
        assert f"all as PEM, the key's password in {PASSWORD_VARIABLE}, but" in refused(
            *pair, wrong
        )
    assert "all as PEM" in refused("--ssl-certfile", str(certificate)), "there is no key in it"
    assert "all as PEM" in refused(*whole, "--ssl-ca-certs", "text.pem")
    assert "--ssl-ca-certs must name who signs them" in refused(*whole, "--ssl-cert-reqs", "2")
    assert "--ssl-ciphers nonsense: " in refused(*whole, "--ssl-ciphers", "nonsense")
    for version in (int(ssl.PROTOCOL_TLS_CLIENT), 99):
        assert f"--ssl-version {version}: " in refused(*whole, "--ssl-version", str(version))
    guarded = ("--ssl-keyfile", str(locked), "--ssl-certfile", str(its))
    for password in ("", "wrong"):  # and nobody is asked at the terminal
        monkeypatch.setenv(PASSWORD_VARIABLE, password)
        assert f"the key's password in {PASSWORD_VARIABLE}" in refused(*guarded)
    nobody = f"postgresql://nobody@127.0.0.1:{existing.port}"
    shared = ("--shared", "--home", str(work / "home"))
    err = refused(*shared, "--postgres", nobody)
    assert "must let us in and make databases" in err
    assert "see PGPASSFILE" in err
