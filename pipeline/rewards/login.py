"""Who a reward over HTTP says it is: the login for its host in the netrc file of the machine that asks.

The file is ~/.netrc, or the one that the variable NETRC names; curl and git read it too. So no password stands in a
configuration.
"""

import json
import os
from base64 import b64decode
from collections.abc import Mapping
from netrc import NetrcParseError, netrc
from pathlib import Path
from urllib.parse import quote

from urllib3.util import make_headers

from pipeline.secrets import HIDDEN

SHORTEST_PASSWORD = 4
"""Characters; a shorter one stands in too many words to be looked for."""


def login_headers(host: str) -> dict[str, str]:
    """The header of HTTP's basic authentication for `host`; none where the file has no login for it.

    The file's entry `default` is not used: it would send a password to whatever host a configuration names.

    Raises:
        ValueError: there is such a file, and it cannot be read.
    """
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    if not file.is_file():
        return {}
    try:
        entry = netrc(str(file)).hosts.get(host)
    except (NetrcParseError, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file} cannot be read as a netrc file: {error}; repair it, or name another by NETRC"
        ) from error
    if entry is None:
        return {}
    user, _, password = entry
    return dict(make_headers(basic_auth=f"{user}:{password}"))


def hide_login(words: bytes, headers: Mapping[str, str]) -> bytes:
    """What a server answered, without the login of `login_headers`, which it may repeat."""
    token = headers.get("authorization", "").removeprefix("Basic ")
    password = b64decode(token).decode("latin-1").partition(":")[2]
    # A server may have put it into JSON, or into a URL.
    for secret in (token, password, json.dumps(password)[1:-1], quote(password, safe="")):
        if len(secret) >= SHORTEST_PASSWORD:
            words = words.replace(secret.encode(), HIDDEN.encode())
    return words
