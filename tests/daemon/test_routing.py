"""Which provider a request goes to, at which URL, and whether it is a turn."""

from __future__ import annotations

import pytest

from daemon.routing import Route, is_own, route_of

URLS = {
    "anthropic": "https://api.anthropic.test",
    "openai": "https://api.openai.test/v1",
    "local": "http://127.0.0.1:11434/prefix/",
}


def routed(target: str, *names: str, method: str = "POST") -> Route:
    return route_of(method, target, [(name, "x") for name in names], URLS)


@pytest.mark.parametrize(
    ("target", "names", "url"),
    [
        ("/v1/messages", (), "https://api.anthropic.test/v1/messages"),
        ("/v1/messages/count_tokens", (), "https://api.anthropic.test/v1/messages/count_tokens"),
        ("/v1/messages?beta=true", (), "https://api.anthropic.test/v1/messages?beta=true"),
        ("/v1/models", ("Anthropic-Version",), "https://api.anthropic.test/v1/models"),
        ("/v1/models", ("X-API-KEY",), "https://api.anthropic.test/v1/models"),
        ("/v1/models", ("authorization",), "https://api.openai.test/v1/models"),
        ("/v1/chat/completions", (), "https://api.openai.test/v1/chat/completions"),
        ("/v1/responses", (), "https://api.openai.test/v1/responses"),
        ("/v1/messagesque", (), "https://api.openai.test/v1/messagesque"),
        ("/whatever", (), "https://api.openai.test/whatever"),
        ("/", (), "https://api.openai.test/"),
        # The first segment outranks the marks of the other provider.
        ("/openai/v1/models", ("anthropic-version",), "https://api.openai.test/v1/models"),
        ("/anthropic/v1/models", ("authorization",), "https://api.anthropic.test/v1/models"),
        ("/anthropic/v1/messages", (), "https://api.anthropic.test/v1/messages"),
        ("/local/v1/chat/completions", (), "http://127.0.0.1:11434/prefix/v1/chat/completions"),
        # A segment that only begins with a provider's name, or has nothing after it, names none.
        ("/openaiish/v1/models", (), "https://api.openai.test/openaiish/v1/models"),
        ("/anthropic", (), "https://api.openai.test/anthropic"),
        ("/openai/openai/v1", (), "https://api.openai.test/openai/v1"),
    ],
)
def test_target_and_headers_decide_the_url(target: str, names: tuple[str, ...], url: str) -> None:
    assert routed(target, *names).url == url


@pytest.mark.parametrize(
    "target", ["/v1//a/%2F/../b%20c?q=%41&&", "/v1/files?", "/v1/%zz", "/v1/a;b=c?d#e", "/v1/caf\udcc3\udca9"]
)
def test_odd_target_is_not_rewritten(target: str) -> None:
    assert routed(target).url == "https://api.openai.test" + target
    assert routed("/local" + target).url == "http://127.0.0.1:11434/prefix" + target


@pytest.mark.parametrize("base", ["http://host", "http://host/", "http://host/v1", "http://host/v1/"])
def test_base_url_is_taken_with_and_without_v1(base: str) -> None:
    urls = {"anthropic": base, "openai": base}
    assert route_of("POST", "/v1/messages", [], urls).url == "http://host/v1/messages"
    assert route_of("POST", "/openai/v1/responses", [], urls).url == "http://host/v1/responses"


@pytest.mark.parametrize(
    ("method", "target", "is_turn"),
    [
        ("POST", "/v1/messages", True),
        ("POST", "/v1/messages?beta=true", True),
        ("POST", "/v1/chat/completions", True),
        ("POST", "/v1/responses", True),
        ("POST", "/anthropic/v1/messages", True),
        ("POST", "/local/v1/responses", True),
        ("GET", "/v1/messages", False),
        ("GET", "/v1/responses", False),
        ("POST", "/v1/messages/", False),
        ("POST", "/v1/messages/count_tokens", False),
        ("POST", "/v1/messages/batches", False),
        ("POST", "/v1/responses/resp_1/cancel", False),
        ("POST", "/v1/embeddings", False),
    ],
)
def test_only_a_post_to_a_conversation_is_a_turn(method: str, target: str, is_turn: bool) -> None:
    assert routed(target, method=method).is_turn is is_turn


@pytest.mark.parametrize(
    ("target", "names", "speaks"),
    [
        ("/v1/messages", (), "messages"),
        ("/v1/chat/completions", (), "chat"),
        ("/v1/responses", (), "responses"),
        ("/v1/models", ("x-api-key",), "messages"),
        ("/v1/models", (), "chat"),
        # An Anthropic path at another provider is answered in the words of the path.
        ("/local/v1/messages", (), "messages"),
    ],
)
def test_errors_of_our_own_speak_the_format_of_the_path(target: str, names: tuple[str, ...], speaks: str) -> None:
    assert routed(target, *names).speaks == speaks


def test_path_is_the_one_the_provider_sees() -> None:
    assert routed("/local/v1/responses?x=1").path == "/v1/responses"


@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("/healthz", True),
        ("/readyz", True),
        ("/metrics", True),
        ("/ui", True),
        ("/api/sessions", True),
        ("/api/anything", True),
        ("/api", False),
        ("/healthz/", False),
        ("/v1/metrics", False),
        ("/", False),
    ],
)
def test_own_paths_are_few(path: str, own: bool) -> None:
    assert is_own(path) is own
