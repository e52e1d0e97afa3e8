"""MLflow's model registry: the winner of a study under a name, and back as a file.

A version's source is `runs:/RUN/model`: the files lie with the run that trained it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from lzsweep.errors import TrackingError, UserError
from lzsweep.tracking.client import Gone, Refused, classify, connect, redact
from lzsweep.tracking.names import fit_tag

CHAMPION = "champion"
MODEL_FOLDER = "model"
"""Where the model lies among the artifacts of its run."""

_MODEL_URI = re.compile(r"models:/(?P<name>[^@/]+)(?:@(?P<alias>[^/]+)|/(?P<version>\d+))")


def model_name(text: str) -> str:
    """A name that the registry takes: it refuses `/` and `:`, and so does an address `@`."""
    return re.sub(r"[/:@\s]+", "-", text).strip("-.") or "lzsweep"


def champion_of(uri: str, name: str) -> tuple[str, str] | None:
    """Version and run of the champion; None where there is none.

    Raises:
        TrackingError: the server does not answer or refuses.
    """
    client = connect(uri)
    try:
        version = client.get_model_version_by_alias(name, CHAMPION)
    except Exception as error:
        if _is_missing(error):
            return None
        raise TrackingError(
            f"the registry at {redact(uri)} cannot be read: {classify(error)}"
        ) from error
    return str(version.version), str(version.run_id)


def register(
    uri: str, name: str, run_id: str, folder: Path, tags: Mapping[str, str], description: str
) -> str:
    """Upload a model to its run, register it and make it the champion.

    Args:
        uri: the tracking server.
        name: of the registered model; made where it is not there.
        run_id: the run that trained it.
        folder: the model, as MLflow saves it.
        tags: of the version.
        description: Markdown, shown on the version's page.

    Returns:
        The version.

    Raises:
        TrackingError: the server does not answer or refuses.
    """
    client = connect(uri)
    try:
        client.log_artifacts(run_id, str(folder), MODEL_FOLDER)
        try:
            client.create_registered_model(name)
        except Exception as error:
            if "RESOURCE_ALREADY_EXISTS" not in str(getattr(error, "error_code", "")):
                raise
        version = client.create_model_version(
            name,
            f"runs:/{run_id}/{MODEL_FOLDER}",
            run_id,
            tags={key: fit_tag(value) for key, value in tags.items()},
            description=description,
        )
        client.set_registered_model_alias(name, CHAMPION, version.version)
    except Exception as error:
        raise TrackingError(
            f"the model could not be registered at {redact(uri)}: {classify(error)}"
        ) from error
    return str(version.version)


def download_from_model(uri: str, model: str, path: str, scratch: Path) -> Path:
    """Fetch one file of a registered model.

    Args:
        uri: the tracking server.
        model: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        path: of the file within the model.
        scratch: folder for it.

    Raises:
        UserError: the address has no such form, or there is no such model or file.
    """
    found = _MODEL_URI.fullmatch(model)
    if not found:
        raise UserError(
            f"a model must be given as models:/NAME@champion or models:/NAME/1, but got {model!r}"
        )
    client = connect(uri)
    try:
        if found["alias"]:
            version = client.get_model_version_by_alias(found["name"], found["alias"])
        else:
            version = client.get_model_version(found["name"], found["version"])
        place = f"{MODEL_FOLDER}/{path}"
        return Path(client.download_artifacts(str(version.run_id), place, str(scratch)))
    except Exception as error:
        if _is_missing(error):
            raise UserError(
                f"a model must be registered to be exported, but {redact(uri)} has no {model};"
                " see `lzsweep promote`"
            ) from error
        raise TrackingError(
            f"{model} cannot be had from {redact(uri)}: {classify(error)}"
        ) from error


def _is_missing(error: Exception) -> bool:
    why = classify(error)
    if isinstance(why, Gone):
        return True
    # MLflow calls an alias that is not there an invalid value. The text of a failed request names
    # the endpoint `.../alias` too, so the text alone tells nothing.
    code = getattr(error, "error_code", None)
    is_invalid = isinstance(why, Refused) and code == "INVALID_PARAMETER_VALUE"
    return is_invalid and "alias" in str(error).lower()
