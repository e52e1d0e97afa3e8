"""TLS of a server: uvicorn's own options, by their names there, made into one context and tried.

The password of a private key comes from uvicorn's own variable `UVICORN_SSL_KEYFILE_PASSWORD`
alone: whatever is an argument stands in the list of processes.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, fields
from pathlib import Path

from lzsweep.errors import UserError

PASSWORD = "UVICORN_SSL_KEYFILE_PASSWORD"


@dataclass(frozen=True)
class Tls:
    """Uvicorn's options, each None where it was not given.

    Attributes:
        keyfile: the private key, PEM; else it stands in `certfile`.
        certfile: the certificate, and those that vouch for it, PEM.
        ca_certs: who signs the certificates of clients, PEM.
        cert_reqs: whether clients need one: 0 no, 1 if they have one, 2 yes, as Python's `ssl` has
            it; 2 with `ca_certs`, else 0.
        version: of the protocol, a number of Python's `ssl`; by default all that are safe.
        ciphers: as OpenSSL lists them; by default its safe ones.
    """

    keyfile: Path | None = None
    certfile: Path | None = None
    ca_certs: Path | None = None
    cert_reqs: int | None = None
    version: int | None = None
    ciphers: str | None = None

    def open_context(self) -> ssl.SSLContext | None:
        """What a server encrypts with; None where nothing was given.

        Raises:
            UserError: a file or an option is missing, or they do not fit each other.
        """
        given = {
            f"--ssl-{field.name.replace('_', '-')}": getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) is not None
        }
        if not given:
            return None
        if self.certfile is None:
            raise UserError(f"TLS takes --ssl-certfile too, but got {' '.join(given)} alone")
        if self.cert_reqs and self.ca_certs is None:
            raise UserError(
                f"clients are asked for a certificate by --ssl-cert-reqs {self.cert_reqs}, so"
                " --ssl-ca-certs must name who signs them"
            )
        files = [path for path in given.values() if isinstance(path, Path)]
        if missing := [str(path) for path in files if not path.is_file()]:
            raise UserError(f"files for TLS must exist, but there is no {', '.join(missing)}")
        try:
            return self._load()
        except (OSError, ValueError) as error:
            told = " ".join(f"{option} {value}" for option, value in given.items())
            raise UserError(
                "TLS takes a private key, the certificate for it and, as --ssl-ca-certs,"
                f" certificates, all as PEM, the key's password in {PASSWORD}, but {told}: {error}"
            ) from error

    def _load(self) -> ssl.SSLContext:
        assert self.certfile is not None
        context = ssl.SSLContext(self.version or ssl.PROTOCOL_TLS_SERVER)
        # Without any password OpenSSL would ask at the terminal.
        password = os.environ.pop(PASSWORD, "")
        context.load_cert_chain(self.certfile, self.keyfile, password=password)
        if self.ca_certs is not None:
            context.load_verify_locations(self.ca_certs)
        # Without this the names of those who sign would be taken and nobody be asked.
        asked = ssl.CERT_REQUIRED if self.ca_certs else ssl.CERT_NONE
        context.verify_mode = ssl.VerifyMode(asked if self.cert_reqs is None else self.cert_reqs)
        if self.ciphers is not None:
            context.set_ciphers(self.ciphers)
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)  # a client's cannot
        return context
