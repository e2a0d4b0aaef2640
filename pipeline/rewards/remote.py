"""A reward that lives elsewhere: pictures and prompts go to a server over HTTP, scores come back."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import ClassVar, Self

import msgpack
import numpy as np
import torch
import urllib3
from torch import Tensor
from urllib3.exceptions import HTTPError, LocationParseError, MaxRetryError
from urllib3.util import Retry, Timeout, Url, parse_url

from pipeline.pixels import to_pixels
from pipeline.rewards.base import Reward, RewardError
from pipeline.rewards.login import hide_login, login_headers

LONGEST_QUOTE = 200
"""Characters of a server's own words in an error message."""


class HttpReward(Reward):
    """POST of a batch to a URL, one request a call.

    The request is a msgpack map of two entries: `images`, the bytes of `numpy.save` of (B, H, W, 3) uint8, and
    `prompts`, B strings. The answer is the bytes of `numpy.save` of (B,) float32, higher is better. No pickles, either
    way. The proxies that the environment names are not used. A host that asks who calls is told the login that ~/.netrc
    has for it.

    A subclass in a module of your own changes the class attributes below; name it as `module:Class`.

    Attributes:
        timeout_s: seconds until an attempt counts as failed, for the connection and for each wait for bytes.
        tries: how often a request is sent before the run stops; connections lost and HTTP 5xx are tried again.
        backoff_s: seconds; the wait before try 3 is twice this, and doubles from there. Try 2 follows at once.
    """

    name: ClassVar[str] = "http"
    formula: ClassVar[str] = "the server's own"
    differentiable: ClassVar[bool] = False
    needs_path: ClassVar[bool] = True
    licence: ClassVar[str] = "that of the server"
    timeout_s: ClassVar[float] = 120.0
    tries: ClassVar[int] = 6
    backoff_s: ClassVar[float] = 1.0

    def __init__(self, url: str, device: torch.device) -> None:
        """Score at `url`; scores are put on `device`.

        Raises:
            ValueError: ~/.netrc cannot be read.
        """
        self.url = url
        self.device = device
        self._headers = {"Content-Type": "application/msgpack"} | login_headers(parse_url(url).host or "")
        self._connections = urllib3.PoolManager()

    @classmethod
    def check_path(cls, path: str | None) -> None:
        """Refuse what is no URL. Whether somebody answers there is seen by the workers alone.

        Raises:
            ValueError: the path is missing, or is no http or https URL.
        """
        url = _parsed(path)
        if url is None or url.scheme not in ("http", "https") or not url.host:
            raise ValueError(
                f"reward {cls.name!r} needs reward.path: the URL of a server, such as http://host:8000/score; "
                f"got {path!r}"
            )

    @classmethod
    def load(cls, path: str | None, device: torch.device, dtype: torch.dtype) -> Self:
        """Nothing to load; `dtype` does not matter.

        Raises:
            ValueError: `path` is no URL.
        """
        cls.check_path(path)
        assert path is not None
        return cls(path, device)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score `images` (B, 3, H, W) in [0, 1] against `prompts` (B). Returns (B,) float32 without a gradient.

        Raises:
            RewardError: nobody answered in time however often it was tried, the server refused, or its answer is not
                (B,) float32 of finite numbers.
            ValueError: images of another shape, or with pixels that are not finite.
        """
        assert len(images) == len(prompts), f"{len(images)} images for {len(prompts)} prompts"
        body = self._post(pack_request(to_pixels(images), prompts))
        if not body.startswith(np.lib.format.MAGIC_PREFIX):
            body = hide_login(body, self._headers)
        try:
            scores = unpack_scores(body, len(prompts))
        except ValueError as error:
            raise RewardError(
                f"reward {self.name!r}: {self.url} answered with {error}; docs/own_rewards.md says what an answer is"
            ) from error
        return torch.from_numpy(scores).to(self.device)

    def _post(self, request: bytes) -> bytes:
        try:
            response = self._connections.request(
                "POST",
                self.url,
                body=request,
                headers=self._headers,
                redirect=False,
                timeout=Timeout(self.timeout_s),
                retries=Retry(
                    total=self.tries - 1,
                    backoff_factor=self.backoff_s,
                    allowed_methods={"POST"},
                    status_forcelist=range(500, 600),
                    raise_on_status=False,
                    respect_retry_after_header=False,
                ),
            )
        except MaxRetryError as error:
            raise RewardError(
                f"reward {self.name!r}: no answer from {self.url} in {self.tries} tries: {error.reason}; each had "
                f"{self.timeout_s:g} s, and a server that is slow gets smaller calls by reward_actors.decode_chunk, or "
                "more time by timeout_s of a subclass (docs/own_rewards.md)"
            ) from error
        except HTTPError as error:
            raise RewardError(f"reward {self.name!r}: no answer from {self.url}: {error}") from error
        if response.status != 200:
            tried = f" in {self.tries} tries" if response.status >= 500 else ""
            words = hide_login(response.data, self._headers).decode("utf-8", errors="replace")[:LONGEST_QUOTE]
            raise RewardError(f"reward {self.name!r}: {self.url} answered with HTTP {response.status}{tried}: {words}")
        return response.data


def pack_request(pixels: np.ndarray, prompts: Sequence[str]) -> bytes:
    """The body of a request, from `pixels` (B, H, W, 3) uint8 and `prompts` (B)."""
    buffer = BytesIO()
    np.save(buffer, pixels, allow_pickle=False)
    packed: bytes = msgpack.packb({"images": buffer.getvalue(), "prompts": list(prompts)})
    return packed


def unpack_scores(body: bytes, count: int) -> np.ndarray:
    """The scores, (count,) float32, of the body of an answer.

    Raises:
        ValueError: anything else; the message says what was found instead.
    """
    buffer = BytesIO(body)
    try:
        version = np.lib.format.read_magic(buffer)
        if version != (1, 0):
            raise ValueError(f"npy version {version}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(buffer)
    except Exception as error:  # numpy lets several kinds through: of the tokenizer, the parser, the type's name
        raise ValueError(
            f"{len(body)} bytes that are not the npy of an array ({error}): {body[:LONGEST_QUOTE]!r}"
        ) from error
    expected = f"instead of ({count},) float32"
    if shape != (count,) or dtype != np.float32:
        raise ValueError(f"an array of shape {shape} and type {dtype} {expected}")
    values = body[buffer.tell() :]
    if len(values) != 4 * count:
        raise ValueError(f"{len(values)} bytes of values {expected}")
    scores = np.frombuffer(values, dtype=np.float32).copy()
    if not np.isfinite(scores).all():
        index = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(f"{scores[index]} as the score of image {index}")
    return scores


def _parsed(path: str | None) -> Url | None:
    try:
        return parse_url(path or "")
    except LocationParseError:
        return None
