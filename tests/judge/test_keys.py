"""A key is sent to its endpoint and appears nowhere else."""

from __future__ import annotations

import logging
import traceback

import pytest

from benchmarks import scripted_endpoint as play
from benchmarks.scripted_endpoint import KEY_VARIABLE, ScriptedServer
from polaris_fast.config import JudgeConfig
from polaris_fast.judge import JudgeJob, JudgePool
from polaris_fast.judge.client import JudgeClient, display_url, proxy_of
from polaris_fast.judge.flow.panel import Tier
from polaris_fast.types import Rejected, Scored, UserError

KEY = "sk-secret-0123456789abcdef"


@pytest.fixture
def key(monkeypatch, fast_config) -> str:
    """Set after `fast_config`, which clears the variable."""
    monkeypatch.setenv(KEY_VARIABLE, f" {KEY}\n")
    return KEY


def test_sent_as_bearer(make_pool, key):
    with ScriptedServer() as server, make_pool(server.base_url) as pool:
        assert isinstance(pool.submit(JudgeJob("0", "p", "s")).result(), Scored)
    assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("has_key", [True, False])
def test_no_password_of_a_netrc_file_is_sent(
    make_pool, monkeypatch, tmp_path, request, has_key
) -> None:
    if has_key:
        request.getfixturevalue("key")
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password of-another-host\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with ScriptedServer() as server:
        monkeypatch.setenv("HTTP_PROXY", server.base_url.removesuffix("/v1"))
        with make_pool("http://judge.example/v1") as pool:
            assert isinstance(pool.submit(JudgeJob("0", "p", "s")).result(), Scored)
    sent = server.requests[0].headers.get("Authorization")
    assert sent == (f"Bearer {KEY}" if has_key else None)


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("https://judge.example/v1", "http://proxy.example:3128"),
        ("http://judge.example/v1", "http://plain.example:3128"),
        ("http://127.0.0.1:8000/v1", None),
        ("https://near.internal/v1", None),
    ],
)
def test_the_proxy_of_the_environment_is_used_where_it_is_meant(monkeypatch, url, proxy) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("HTTP_PROXY", "plain.example:3128")
    monkeypatch.setenv("NO_PROXY", ".internal")
    for name in ("https_proxy", "http_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert proxy_of(url) == proxy


@pytest.mark.parametrize(
    "behaviour",
    [
        play.status(400, error={"message": f"bad header Bearer {KEY}", "code": KEY}),
        play.status(401, error={"message": f"Incorrect API key provided: {KEY[:9]}***"}),
        play.status(500, error={"message": KEY}),
        play.refusal(f"Not with {KEY}"),
        play.reset_mid_body(),
        play.reset_at_once(),
        play.slow(5),
    ],
)
def test_never_in_outcomes_logs_or_output(make_pool, key, behaviour, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    with (
        ScriptedServer(default=behaviour) as server,
        make_pool(server.base_url, timeout_s=0.1, max_attempts=2) as pool,
    ):
        outcome = pool.submit(JudgeJob("0", "p", "s")).result()
        metrics = pool.take_metrics()
    assert not isinstance(outcome, Scored)
    printed = capfd.readouterr()
    texts = [repr(outcome), repr(metrics), caplog.text, printed.out, printed.err, repr(vars(pool))]
    assert not any(KEY in text or KEY[:9] in text for text in texts)
    if isinstance(outcome, Rejected):
        assert "[key]" in outcome.reason


@pytest.mark.parametrize("code", [401, 500])
def test_never_in_the_error_at_the_start(make_pool, key, code):
    models = play.status(code, error={"message": f"key {KEY}"})
    with (
        ScriptedServer(models=models) as server,
        pytest.raises(UserError) as caught,
        make_pool(server.base_url),
    ):
        pass
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_not_sent_to_the_local_judge(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    client = JudgeClient(JudgeConfig(api_key_env=KEY_VARIABLE), "http://h/v1", send_key=False)
    assert client.key == ""
    with JudgePool(JudgeConfig(api_key_env=KEY_VARIABLE)) as pool:
        assert pool._endpoints[Tier.MAIN].client.key == ""


def test_shown_address_has_no_password_and_no_query():
    shown = display_url("https://user:pass@judge.example:8443/v1?key=abc#d")
    assert shown == "https://judge.example:8443/v1"
