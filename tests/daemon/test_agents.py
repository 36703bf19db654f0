"""What each agent is told, as values."""

from __future__ import annotations

import json
import tomllib
from typing import Any, Final

import pytest

from daemon.agents import AGENTS, PI_EXTENSION, Gateway, Told, told

URL: Final = "http://127.0.0.1:7373"
PLAIN: Final = Gateway(url=URL, anthropic_url="https://api.anthropic.com")
GUARDED: Final = Gateway(url=URL, token="abc123", anthropic_url="https://api.anthropic.com")
BOTH_SDKS: Final = {
    "ANTHROPIC_BASE_URL": URL,
    "ANTHROPIC_API_BASE": URL,
    "OPENAI_BASE_URL": f"{URL}/v1",
    "OPENAI_API_BASE": f"{URL}/v1",
}


def tell(command: str, *arguments: str, gateway: Gateway = PLAIN, **environ: str) -> Told:
    return told(command, arguments, gateway, environ)


def overrides(told: Told) -> dict[str, Any]:
    """What Codex makes of its -c KEY=VALUE: the value is TOML."""
    assert told.arguments[::2] == ("-c",) * (len(told.arguments) // 2)
    return tomllib.loads("\n".join(told.arguments[1::2]))


def test_claude_code_gets_its_base_url_and_nothing_for_others() -> None:
    assert tell("claude").variables == {"ANTHROPIC_BASE_URL": URL, "ENABLE_TOOL_SEARCH": "true"}
    assert tell("/usr/local/bin/claude") == tell("claude")
    assert tell("claude").arguments == ()


def test_claude_code_searches_for_tools_as_it_would_without_perdure_and_no_further() -> None:
    elsewhere = Gateway(url=URL, anthropic_url="https://llm.example.com")
    assert "ENABLE_TOOL_SEARCH" not in tell("claude", gateway=elsewhere).variables
    assert "ENABLE_TOOL_SEARCH" not in tell("claude", ENABLE_TOOL_SEARCH="false").variables


def test_claude_code_token_is_a_line_among_the_users_own() -> None:
    mine = "x-team: blue\nX-Perdure-Token: old"
    told = tell("claude", gateway=GUARDED, ANTHROPIC_CUSTOM_HEADERS=mine)
    assert told.variables["ANTHROPIC_CUSTOM_HEADERS"] == "x-team: blue\nx-perdure-token: abc123"
    assert told.notes == ()


@pytest.mark.parametrize(("value", "notes"), [("1", 1), ("true", 1), ("0", 0), ("false", 0), ("", 0)])
def test_claude_code_that_speaks_to_a_cloud_is_said_so(value: str, notes: int) -> None:
    told = tell("claude", CLAUDE_CODE_USE_BEDROCK=value)
    assert len(told.notes) == notes
    assert all("CLAUDE_CODE_USE_BEDROCK" in note for note in told.notes)


def test_codex_gets_an_override_before_its_own_arguments() -> None:
    told = tell("codex", "exec", "hello")
    assert overrides(told) == {"openai_base_url": f"{URL}/v1"}
    assert told.variables == {"OPENAI_BASE_URL": f"{URL}/v1"}


def test_codex_the_variable_that_it_ignores_is_not_taken_from_its_user() -> None:
    told = tell("codex", OPENAI_BASE_URL="http://localhost:8000/v1")
    assert (told.variables, told.notes) == ({}, ())


def test_codex_with_a_token_gets_a_provider_that_names_the_variable() -> None:
    told = tell("codex", gateway=GUARDED)
    assert overrides(told) == {
        "model_provider": "perdure",
        "model_providers": {
            "perdure": {
                "name": "OpenAI",
                "base_url": f"{URL}/v1",
                "wire_api": "responses",
                "requires_openai_auth": True,
                "env_http_headers": {"x-perdure-token": "PERDURE_TOKEN"},
            }
        },
    }
    assert told.variables["PERDURE_TOKEN"] == "abc123"
    assert not [word for word in told.arguments if "abc123" in word], "arguments are everybody's to read"


def test_opencode_gets_both_providers_beside_what_its_user_gave_it() -> None:
    mine = {"model": "openai/gpt-5", "provider": {"openai": {"options": {"timeout": 5, "baseURL": "http://other"}}}}
    told = tell("opencode", gateway=GUARDED, OPENCODE_CONFIG_CONTENT=json.dumps(mine))
    ours = {"baseURL": f"{URL}/v1", "headers": {"x-perdure-token": "abc123"}}
    assert json.loads(told.variables["OPENCODE_CONFIG_CONTENT"]) == {
        "model": "openai/gpt-5",
        "provider": {"anthropic": {"options": ours}, "openai": {"options": {"timeout": 5, **ours}}},
    }
    assert json.loads(tell("opencode").variables["OPENCODE_CONFIG_CONTENT"])["provider"]["anthropic"] == {
        "options": {"baseURL": f"{URL}/v1"}
    }


@pytest.mark.parametrize("mine", ["// comment\n{}", "[]", '{"provider": []}', '{"provider": {"openai": 1}}', "null"])
def test_opencode_configuration_that_can_not_be_added_to_is_left_and_said_so(mine: str) -> None:
    told = tell("opencode", OPENCODE_CONFIG_CONTENT=mine)
    assert told.variables == {}
    assert "past perdure" in told.notes[0]


def test_pi_gets_an_extension_but_not_before_its_verbs() -> None:
    told = tell("pi", "-p", "hello", gateway=GUARDED)
    assert told.arguments == ("--extension", str(PI_EXTENSION))
    assert told.variables == {"PERDURE_URL": URL, "PERDURE_TOKEN": "abc123"}
    assert tell("pi", "install", "npm:some").arguments == ()


def test_any_other_command_gets_what_both_sdks_read() -> None:
    assert tell("my-agent").variables == BOTH_SDKS
    assert tell("my-agent").notes == ()
    told = tell("my-agent", gateway=GUARDED)
    header = "x-perdure-token: abc123"
    assert told.variables == BOTH_SDKS | {"ANTHROPIC_CUSTOM_HEADERS": header, "OPENAI_CUSTOM_HEADERS": header}
    assert len(told.notes) == 1


def test_aider_can_not_send_the_token_and_that_is_said() -> None:
    assert tell("aider").variables == BOTH_SDKS
    assert tell("aider").notes == ()
    assert "401" in tell("aider", gateway=GUARDED).notes[0]


def test_what_was_set_on_purpose_is_replaced_with_a_note_that_does_not_quote_it() -> None:
    told = tell("claude", ANTHROPIC_BASE_URL="https://me:secret@proxy", OPENAI_BASE_URL="http://mine")
    assert len(told.notes) == 1
    assert "ANTHROPIC_BASE_URL" in told.notes[0] and "PERDURE_ANTHROPIC_URL" in told.notes[0]
    assert "secret" not in told.notes[0]
    assert tell("claude", ANTHROPIC_BASE_URL=URL).notes == ()


@pytest.mark.parametrize("proxy", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_a_proxy_is_not_asked_for_the_way_to_us(proxy: str) -> None:
    environ = {proxy: "http://proxy:3128"}
    variables = told("claude", (), PLAIN, {"NO_PROXY": "example.com", **environ}).variables
    assert variables["NO_PROXY"] == variables["no_proxy"] == "example.com,127.0.0.1"
    assert "NO_PROXY" not in told("claude", (), PLAIN, {"NO_PROXY": "a, 127.0.0.1", **environ}).variables
    assert "NO_PROXY" not in tell("claude").variables


@pytest.mark.parametrize("command", [*AGENTS, "my-agent"])
def test_no_token_is_told_where_there_is_none(command: str) -> None:
    told = tell(command)
    assert "token" not in f"{told}".lower()
