"""Names and texts made to fit what MLflow takes, so that nothing is lost for its form.

MLflow takes names of letters, digits and `/_-.: ` that are no path tricks, up to 250 characters,
params up to 6,000 and tags up to 8,000; databases take neither NUL nor half a surrogate pair.
"""

from __future__ import annotations

import posixpath
import re

_MAX_NAME = 250
_MAX_PARAM = 6000
_MAX_TAG = 8000
_NOT_IN_NAMES = re.compile(r"[^/\w.\- :]")


def fit_name(name: str) -> str:
    """The name of a metric, param or tag."""
    plain = posixpath.normpath(_NOT_IN_NAMES.sub("_", name)).strip("/")
    return plain.replace("..", "__")[:_MAX_NAME].strip(".") or "unnamed"


def fit_param(value: object) -> str:
    """The value of a param."""
    return fit_text(value)[:_MAX_PARAM]


def fit_tag(value: object) -> str:
    """The value of a tag."""
    return fit_text(value)[:_MAX_TAG]


def fit_text(text: object) -> str:
    """Any text."""
    return str(text).replace("\0", "\ufffd").encode("utf-8", "replace").decode()
