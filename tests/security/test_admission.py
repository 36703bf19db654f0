"""Who is answered: tokens, and requests that web pages send through their reader's browser.

One rule: a refusal is shown twice, by the function that decides and by a running daemon, behind which nothing arrives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from daemon.admission import OPEN_PATHS, Admission, without_token
from tests.processes import Gateway
from tests.provider import ScriptedProvider
from tests.system.turns import PATHS, WIRES, body_of, error_kind, headers_of, take_turn
from worker.protocol import Protocol

TOKEN: Final = "Open-Sesame"
OURS: Final = (
    "127.0.0.1",
    "127.0.0.1:7373",
    "127.8.9.10:80",
    "localhost",
    "LocalHost:7373",
    "localhost.:7373",
    "[::1]:7373",
    "[::1]",
    "proxy.example",
    "Proxy.Example:443",
    "10.1.2.3:7373",
)
STRANGE: Final = (
    "",
    "evil.example",
    "evil.example:7373",
    "127.0.0.1.evil.example",
    "localhost.evil.example:7373",
    "evil-localhost",
    # Means this machine to many systems, and is a page's favourite for it.
    "0.0.0.0:7373",
    "[::]:7373",
    "192.168.0.7:7373",
    "127.1",
    "2130706433",
    "[::ffff:127.0.0.1]",
    "proxy.example.evil.example",
    "[half",
    "\udcff\udcfe",
    "127.0.0.1@evil.example",
)
PROGRAMS: Final = (
    "vscode-webview://0a1b",
    "https://tauri.localhost",
    "app://obsidian.md",
    "tauri://localhost",
    "chrome-extension://abcdef",
)
"""Origins of programs on this machine, whose windows are pages too."""


def of_hosts(*hosts: str) -> Admission:
    return Admission("", hosts)


def status(admission: Admission, *headers: tuple[str, str], path: str = "/v1/messages") -> int | None:
    refusal = admission.refusal(path, headers)
    return refusal.status if refusal else None


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", OURS)
def test_host_of_ours_is_answered(host: str) -> None:
    admission = of_hosts("proxy.example", "10.1.2.3")
    assert status(admission, ("Host", host)) is None
    assert status(admission, ("Host", "127.0.0.1"), ("Origin", f"http://{host}")) is None


@pytest.mark.parametrize("host", STRANGE)
def test_host_of_somebody_else_is_refused(host: str) -> None:
    admission = of_hosts("proxy.example", "10.1.2.3")
    assert status(admission, ("Host", host)) == 421
    assert status(admission, ("host", "127.0.0.1"), ("HOST", host)) == 421, "each of several counts"
    assert status(admission, ("Host", "127.0.0.1"), ("origin", f"https://{host}")) == 403


def test_request_without_a_host_is_no_browsers() -> None:
    assert status(of_hosts()) is None


@pytest.mark.parametrize("origin", PROGRAMS)
def test_origin_of_a_program_is_answered(origin: str) -> None:
    assert status(of_hosts(), ("Host", "localhost"), ("Origin", origin)) is None


@pytest.mark.parametrize("origin", ["null", "NULL", "http://evil.example", "HTTPS://EVIL.example:8443", "http://"])
def test_origin_of_a_page_is_refused(origin: str) -> None:
    assert status(of_hosts(), ("Host", "localhost"), ("Origin", origin)) == 403


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
@pytest.mark.parametrize("admission", [of_hosts(), Admission(TOKEN, ())])
def test_health_is_told_under_any_name(admission: Admission, path: str) -> None:
    assert status(admission, ("Host", "10.0.0.9"), path=path) is None
    assert status(admission, ("Host", "10.0.0.9"), path=path + "/") is not None


# -- the token -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["", "wrong", TOKEN.upper(), TOKEN + "x", TOKEN[:-1], "\udcff\udc80", "x" * 60_000])
def test_token_that_is_another_is_refused(given: str) -> None:
    asking = Admission(TOKEN, ("localhost",))
    assert status(asking, ("X-Perdure-Token", given), ("Host", "localhost")) == 401
    assert status(asking, ("x-perdure-token", given), ("x-perdure-token", TOKEN)) == 401, "the first counts"
    assert status(asking, ("authorization", TOKEN)) == 401


def test_token_is_enough_under_any_name() -> None:
    assert status(Admission(TOKEN, ()), ("X-PERDURE-Token", TOKEN), ("Host", "evil.example")) is None
    assert status(Admission(TOKEN, ()), ("x-perdure-token", TOKEN), ("Origin", "https://chat.example")) is None


def test_token_is_taken_out_however_it_is_written() -> None:
    kept = [("Host", "x"), ("x-perdure-session", TOKEN)]
    assert without_token([("X-Perdure-Token", TOKEN), *kept, ("x-perdure-TOKEN", "other")]) == kept


def test_refusal_quotes_nothing_of_the_request() -> None:
    asking = (of_hosts(), ("Host", "marked.example")), (of_hosts(), ("Origin", "https://marked.example"))
    for admission, header in (*asking, (Admission(TOKEN, ()), ("x-perdure-token", "marked"))):
        refusal = admission.refusal("/marked", [header])
        assert refusal and "marked" not in refusal.message and TOKEN not in refusal.message


# -- a running daemon ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider(seed=5) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(provider: ScriptedProvider) -> Iterator[Gateway]:
    with Gateway(provider, hosts="gateway.example, 10.1.2.3") as running:
        running.start()
        yield running


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    ("header", "expected", "kind"),
    [
        (("Host", "evil.example:7373"), 421, "invalid_request_error"),
        (("Origin", "https://evil.example"), 403, "permission_error"),
        (("Origin", "null"), 403, "permission_error"),
    ],
)
def test_page_that_wants_to_speak_for_its_reader_reaches_nothing(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, header: tuple[str, str], expected: int, kind: str
) -> None:
    arrived, rows = len(provider.requests), len(gateway.rows())
    # What a page can send without asking first: a body that says it is text.
    page = [("content-type", "text/plain"), ("sec-fetch-site", "cross-site"), header]
    with gateway.client() as client:
        answer = client.ask("POST", PATHS[wire], page, body_of(wire, "spend"))
        assert (answer.status, answer.header("content-type")) == (expected, "application/json")
        # Without any header of the provider's the path has to tell whose shape it is.
        assert error_kind(wire, answer) == kind and "PERDURE_HOSTS" in answer.body.decode()
        for path in ("/v1/models", "/api/sessions", "/metrics", "/ui", "/"):
            for method in ("GET", "HEAD", "OPTIONS", "DELETE"):
                assert client.ask(method, path, [header]).status == expected, (method, path)
        assert client.ask("GET", "/readyz", [header]).status == 200
    assert len(provider.requests) == arrived and len(gateway.rows()) == rows


@pytest.mark.parametrize("host", ["gateway.example", "GATEWAY.example:443", "10.1.2.3:7373", "localhost:1", "[::1]:1"])
def test_names_that_are_ours_are_answered(gateway: Gateway, host: str) -> None:
    with gateway.client() as client:
        turn = client.ask("POST", PATHS["chat"], [*headers_of("chat"), ("Host", host)], body_of("chat", "hello"))
        assert turn.status == 200
        answer = client.ask("GET", "/api/sessions", [("Host", host), ("Origin", f"http://{host}")])
        assert answer.status == 200
        assert not any(name.lower().startswith("access-control-") for name, _ in answer.headers)


def test_own_answers_are_readable_to_no_other_origin(gateway: Gateway) -> None:
    """A page may ask without being seen to be one (an image, a script); what keeps the answer from it is the browser,
    as long as we allow no origin anything."""
    with gateway.client() as client:
        for path in ("/healthz", "/readyz", "/metrics", "/api/sessions", "/api/nothing"):
            answer = client.ask("GET", path, [("sec-fetch-site", "cross-site"), ("Origin", "http://localhost:3000")])
            assert not any(name.lower().startswith("access-control-") for name, _ in answer.headers), path


def test_daemon_with_a_token_goes_by_the_token_alone(provider: ScriptedProvider) -> None:
    token = "only-this"
    with Gateway(provider, token=token) as gateway:
        gateway.start()
        with gateway.client() as client:
            strange = [("Host", "anything.example"), ("Origin", "https://chat.example")]
            for given in ("", "x" * 60_000, "\xff\xfe", "only-thi", "only-this-"):
                refused = take_turn(client, "messages", "hello", headers=[*strange, ("x-perdure-token", given)])
                assert refused.status == 401, given[:10]
            arrived = len(provider.requests)
            assert take_turn(client, "messages", "hello", headers=[*strange, ("x-perdure-token", token)]).status == 200
        assert len(provider.requests) == arrived + 1
        sent = provider.requests[-1].headers
        assert not [value for name, value in sent if name.lower() == "x-perdure-token" or token in value]
