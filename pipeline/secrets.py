"""Secrets stay out of what a run leaves behind: settings that hold one are refused, and texts of errors are redacted.

Settings are written down in many places (config.yaml, the report, the adapter's card, a tracker), and a resumed run
needs them as they were; so a secret in them is not hidden but refused. What others write, such as the error of a
library, is redacted.
"""

import os
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

HIDDEN = "***"

SECRET_VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CONNECTION_STRING)$", re.IGNORECASE)
"""What the name of an environment variable ends with whose value nobody should see."""

SHORTEST_SECRET = 8
"""Characters; a shorter value of such a variable is too common a word to look for."""

_LOGIN = re.compile(r"(?<=://)[^\s/?#'\"]*:[^\s/?#'\"]*(?=@)")
_PARAMETER = re.compile(
    r"(?P<name>[?&](?:[\w.-]*[_.-])?(?:api)?(?:key|token|secret|password|passwd|signature|sig|credential)=)[^\s&#'\"]+",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """`text` without logins and secret parameters of URLs, and without the values of secret environment variables."""
    text = _PARAMETER.sub(rf"\g<name>{HIDDEN}", _LOGIN.sub(HIDDEN, text))
    # The longest first: one may be a part of another.
    for value in sorted(_secret_variables().values(), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text


def redact_values(value: Any) -> Any:
    """Plain values, as JSON knows them, with every string in them redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: redact_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_values(item) for item in value]
    return value


def refuse_secrets(settings: BaseModel) -> None:
    """Refuse settings that hold a secret.

    Raises:
        ValueError: the first setting that does, without what is secret in it, and where it belongs.
    """
    for key, text in _texts(settings.model_dump(mode="json"), ""):
        shown = redact(text)
        if shown != text:
            held = [name for name, value in _secret_variables().items() if value in text]
            what = f"the value of the environment variable {held[0]}" if held else "a secret"
            raise ValueError(
                f"{key}={shown!r} holds {what}, which the run folder, the report and the logs would show; leave it "
                "out: a reward over HTTP takes its login from ~/.netrc, storage and the hub take theirs from the "
                "environment or from the role of the machine (docs/cluster.md)"
            )


def _secret_variables() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if SECRET_VARIABLE.search(name) and len(value) >= SHORTEST_SECRET
    }


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every string in plain values, with its dotted key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(item, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, f"{key}.{index}")
