"""A reward over HTTP: the example server in a process of its own, and servers that misbehave."""

from __future__ import annotations

import threading
import time
import traceback
from base64 import b64encode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from eventually import wait_until
from hypothesis import example, given, settings
from hypothesis import strategies as st
from impatient_reward import ImpatientReward
from scoring_server import ScoringServer
from settings import miniature_settings
from torch import Tensor

from actors.reward import RewardActor
from pipeline.rewards import load_reward, reward_class
from pipeline.rewards.base import RewardError
from pipeline.rewards.remote import pack_request, unpack_scores

pytest_plugins = ["model_fixtures"]

CPU = torch.device("cpu")
PROMPTS = ["a red circle", "ein Fuß", "🦊"]


class HurriedReward(ImpatientReward):
    timeout_s = 0.5


def npy(values: object, dtype: type = np.float32) -> bytes:
    buffer = BytesIO()
    np.save(buffer, np.array(values, dtype=dtype), allow_pickle=True)
    return buffer.getvalue()


SCORES = npy([1.0, 2.0, 3.0])


@pytest.fixture
def images() -> Tensor:
    """(3, 3, 8, 12)."""
    return torch.rand(3, 3, 8, 12, generator=torch.Generator().manual_seed(0))


# The example


@pytest.fixture(scope="module")
def example_server() -> Iterator[ScoringServer]:
    with ScoringServer() as server:
        yield server


def test_the_example_server_scores_as_the_reward_in_this_process_does(example_server, images: Tensor) -> None:
    remote, local = (
        load_reward("http", example_server.url, CPU, torch.float32),
        load_reward("jpeg_compressibility", None, CPU, CPU),
    )
    for count in (3, 1):
        scores = remote.score(images[:count], PROMPTS[:count])
        assert scores.dtype == torch.float32 and scores.shape == (count,)
        torch.testing.assert_close(scores, local.score(images[:count], PROMPTS[:count]))


def test_a_reward_actor_scores_over_http(example_server, miniature_model) -> None:
    latents = np.random.default_rng(0).standard_normal((3, 4, 8, 8), dtype=np.float32)
    threads = torch.get_num_threads()
    rewards = [{"name": "http", "path": example_server.url}, {"name": "jpeg_compressibility"}]
    scores = [RewardActor(miniature_settings(miniature_model, reward=it)).score(latents, PROMPTS, 0) for it in rewards]
    torch.set_num_threads(threads)
    np.testing.assert_allclose(*scores, rtol=1e-6)


def test_the_example_server_refuses_what_it_cannot_read(example_server, images: Tensor) -> None:
    url = example_server.url
    with pytest.raises(RewardError, match=r"reward 'http': http://.*/nowhere answered with HTTP 404: "):
        ImpatientReward(url.replace("score", "nowhere"), CPU).score(images, PROMPTS)
    for body in (b"", b"garbage", msgpack.packb({"images": b"garbage", "prompts": []}), msgpack.packb([1])):
        with pytest.raises(RewardError, match="answered with HTTP 400"):
            ImpatientReward(url, CPU)._post(body)


def test_a_server_that_is_killed_is_told_of_and_one_that_is_back_is_asked(example_server, images: Tensor) -> None:
    reward = ImpatientReward(example_server.url, CPU)
    before = reward.score(images, PROMPTS)
    example_server.kill()
    with pytest.raises(RewardError, match=rf"no answer from {reward.url} in 3 tries: .*Connection refused"):
        reward.score(images, PROMPTS)
    example_server.start_again()
    assert torch.equal(reward.score(images, PROMPTS), before)


# Servers that misbehave

Answer = Callable[[BaseHTTPRequestHandler], None]


class ScriptedServer:
    """Answers its requests one after another as it is told; the last answer is given again and again."""

    def __init__(self, *answers: Answer) -> None:
        self.bodies: list[bytes] = []
        self.logins: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer.logins.append(self.headers["Authorization"])
                outer.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                answers[min(len(outer.bodies), len(answers)) - 1](self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/score"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def body(content: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def silence(seconds: float) -> Answer:
    return lambda handler: time.sleep(seconds)


def cut_off(handler: BaseHTTPRequestHandler) -> None:
    """Promise more bytes than are sent, and hang up."""
    body(SCORES[:50], Content_Length=str(len(SCORES)))(handler)
    handler.close_connection = True


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


@pytest.mark.parametrize("failure", [hang_up, cut_off, body(b"restarting", 503)])
def test_it_recovers_after_one_failure(failure: Answer, images: Tensor) -> None:
    with ScriptedServer(failure, body(SCORES)) as server:
        assert ImpatientReward(server.url, CPU).score(images, PROMPTS).tolist() == [1.0, 2.0, 3.0]
    assert len(server.bodies) == 2 and server.bodies[0] == server.bodies[1]


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (hang_up, "no answer from {url} in 3 tries: .*Remote end closed connection"),
        (cut_off, "no answer from {url} in 3 tries: .*IncompleteRead"),
        (body(b"out of memory", 500), "{url} answered with HTTP 500 in 3 tries: out of memory"),
    ],
)
def test_it_stops_after_the_last_try(failure: Answer, message: str, images: Tensor) -> None:
    with (
        ScriptedServer(failure) as server,
        pytest.raises(RewardError, match=f"^reward 'http': {message.format(url=server.url)}"),
    ):
        ImpatientReward(server.url, CPU).score(images, PROMPTS)
    assert len(server.bodies) == 3


def test_an_answer_that_does_not_come_in_time_counts_as_a_failure(images: Tensor) -> None:
    with (
        ScriptedServer(silence(1.0)) as server,
        pytest.raises(RewardError, match=f"^reward 'http': no answer from {server.url} in 3 tries: .*timed out"),
    ):
        HurriedReward(server.url, CPU).score(images, PROMPTS)
    wait_until(lambda: len(server.bodies) == 3)  # the last one may not have been read yet


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (body(b"who are you?", 401), "HTTP 401: who are you?"),
        (body(b"slow down", 429, Retry_After="9999"), "HTTP 429: slow down"),
        (body(b"", 302, Location="/elsewhere"), "HTTP 302: "),
        (body(b"", 204), "HTTP 204: "),
        (body(b"<html>hello</html>"), "18 bytes that are not the npy of an array .*: b'<html>hello</html>'"),
        (body(b""), "0 bytes that are not the npy of an array"),
        (body(npy([1.0, 2.0])), r"an array of shape \(2,\) and type float32 instead of \(3,\) float32"),
        (body(npy([[1.0], [2.0], [3.0]])), r"an array of shape \(3, 1\) and type float32 instead"),
        (body(npy([1, 2, 3], np.float64)), r"an array of shape \(3,\) and type float64 instead"),
        (body(npy([None] * 3, object)), r"an array of shape \(3,\) and type object instead"),
        (body(SCORES[:-1]), r"11 bytes of values instead of \(3,\) float32"),
        (body(npy([1.0, np.nan, np.inf])), "nan as the score of image 1"),
        (body(npy([1.0, 2.0, -np.inf])), "-inf as the score of image 2"),
    ],
)
def test_an_answer_of_another_kind_stops_at_once(answer: Answer, message: str, images: Tensor) -> None:
    with (
        ScriptedServer(answer) as server,
        pytest.raises(RewardError, match=f"^reward 'http': {server.url} answered with {message}") as caught,
    ):
        ImpatientReward(server.url, CPU).score(images, PROMPTS)
    assert len(server.bodies) == 1
    assert "HTTP" in message or str(caught.value).endswith("docs/own_rewards.md says what an answer is")


def test_a_request_holds_the_pictures_and_the_prompts(images: Tensor) -> None:
    with ScriptedServer(body(SCORES)) as server:
        ImpatientReward(server.url, CPU).score(images, PROMPTS)
    request = msgpack.unpackb(server.bodies[0])
    pixels = np.load(BytesIO(request["images"]), allow_pickle=False)
    assert request["prompts"] == PROMPTS
    assert pixels.dtype == np.uint8 and pixels.shape == (3, 8, 12, 3)
    assert np.abs(pixels / 255 - images.permute(0, 2, 3, 1).numpy()).max() <= 0.5 / 255 + 1e-6


# Logins


@pytest.fixture
def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_a_host_is_told_the_login_that_the_netrc_file_has_for_it(netrc: Path, images: Tensor) -> None:
    netrc.write_text("machine 127.0.0.1 login ada password count:me\n", encoding="utf-8")
    with ScriptedServer(hang_up, body(SCORES)) as server:
        ImpatientReward(server.url, CPU).score(images, PROMPTS)
    assert server.logins == [f"Basic {b64encode(b'ada:count:me').decode()}"] * 2


@pytest.mark.parametrize("status", [200, 403])
def test_a_server_that_repeats_the_login_does_not_spread_it(netrc: Path, images: Tensor, status: int) -> None:
    """Its words go into the report of a failed run."""
    netrc.write_text("machine 127.0.0.1 login ada password count:me\n", encoding="utf-8")
    token = b64encode(b"ada:count:me").decode()
    words = f"denied: Basic {token}, that is ada:count:me".encode()
    with ScriptedServer(body(words, status)) as server, pytest.raises(RewardError) as caught:
        ImpatientReward(server.url, CPU).score(images, PROMPTS)
    shown = "".join(traceback.format_exception(caught.value))
    assert r"denied: Basic ***, that is ada:***" in shown
    assert token not in shown and "count:me" not in shown


def test_no_other_host_is_told_any_login(netrc: Path, images: Tensor) -> None:
    netrc.write_text("machine elsewhere login ada password a\ndefault login ada password b\n", encoding="utf-8")
    with ScriptedServer(body(SCORES)) as server:
        ImpatientReward(server.url, CPU).score(images, PROMPTS)
    assert server.logins == [None]


def test_a_netrc_file_that_cannot_be_read_is_named(netrc: Path) -> None:
    netrc.write_text("nonsense", encoding="utf-8")
    with pytest.raises(ValueError, match=f"{netrc} cannot be read as a netrc file: .*; repair it"):
        ImpatientReward("http://host/score", CPU)


# Without a server


@pytest.mark.parametrize(
    "path", [None, "", "host:8000/score", "ftp://host/score", "http://", "http://[", "http://host:99999/", "models/x"]
)
def test_what_is_no_url_is_refused(path: str | None) -> None:
    with pytest.raises(ValueError, match=r"reward 'http' needs reward.path: the URL of a server"):
        reward_class("http").check_path(path)


@given(values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=9))
@settings(max_examples=50, deadline=None)
def test_every_score_comes_back_as_it_was_sent(values: list[float]) -> None:
    scores = unpack_scores(npy(values), len(values))
    assert scores.dtype == np.float32 and scores.tolist() == values


@given(position=st.integers(0, len(SCORES) - 1), change=st.integers(1, 255))
@example(position=63, change=1)  # an unmatched brace, on which numpy raises a tokenizer's error
@settings(max_examples=150, deadline=None)
def test_a_damaged_answer_is_refused_or_of_the_right_kind(position: int, change: int) -> None:
    damaged = bytearray(SCORES)
    damaged[position] ^= change
    check_unpacked(bytes(damaged))


@given(content=st.binary(max_size=60), promised=st.sampled_from([b"", SCORES[:6], SCORES[:10], SCORES[:60]]))
@settings(max_examples=150, deadline=None)
def test_no_answer_is_too_odd_to_be_refused(content: bytes, promised: bytes) -> None:
    check_unpacked(promised + content)


def check_unpacked(content: bytes) -> None:
    try:
        scores = unpack_scores(content, 3)
    except ValueError:
        return
    assert scores.shape == (3,) and scores.dtype == np.float32 and np.isfinite(scores).all()


@given(prompts=st.lists(st.text(), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_every_prompt_can_be_sent(prompts: list[str]) -> None:
    assert msgpack.unpackb(pack_request(np.zeros((1, 1, 1, 3), np.uint8), prompts))["prompts"] == prompts
