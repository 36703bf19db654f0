"""What an agent must be told so that it speaks to perdure: a table by the name of its command.

One rule: as little as possible.  Only what the agent itself needs is set, since whatever it starts inherits it, and
that may be a program of its user's with a provider of its own; what its user had set on purpose is replaced only where
nothing else would do, and then a note says so.

Theory.  Clients differ in three things.  *Where the base URL is read*: Claude Code and the SDKs read the environment;
Codex stopped doing so and takes `-c KEY=VALUE`; OpenCode takes a whole configuration from one variable; Pi takes it
from an extension only.  *What they append*: Anthropic's base URL goes without /v1, OpenAI's with it; OpenCode wants /v1
for both, since its SDK appends less.  *How they can send a header*, which perdure's token needs: the SDKs and Claude
Code from a variable with lines `Name: value`, Codex by the name of a variable, OpenCode and Pi beside the URL.

Each row was tried with the real program: Claude Code 2.1, Codex 0.171, OpenCode 1.18, Pi 0.74; LiteLLM 1.110, which is
what aider speaks through, was read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

TOKEN_HEADER: Final = "x-perdure-token"  # noqa: S105 - a header's name


class Gateway(Struct, frozen=True, kw_only=True):
    """What there is to speak to."""

    url: str
    """Its origin."""
    token: str = ""
    """Empty: it asks for none."""
    anthropic_url: str = ""
    """Where it sends on to."""


class Told(Struct, frozen=True, kw_only=True):
    """What a command is told."""

    arguments: tuple[str, ...] = ()
    """Between the command's name and its own arguments, so that the latter win."""
    variables: Mapping[str, str]
    notes: tuple[str, ...] = ()
    """For its user to know: a sentence each."""


def told(command: str, arguments: tuple[str, ...], gateway: Gateway, environ: Mapping[str, str]) -> Told:
    """What to tell a command, known or not, in the environment that its user gave it."""
    name = PurePath(command).name
    row = AGENTS.get(name, _any_other)(gateway, environ, arguments)
    replaced = tuple(
        f"{variable} is replaced for this command; where perdure sends requests on to is said by {origin}"
        for variable, origin in _ORIGINS.items()
        if environ.get(variable) and row.variables.get(variable, environ[variable]) != environ[variable]
    )
    variables = {**row.variables, **_without_proxy(gateway.url, environ)}
    return Told(arguments=row.arguments, variables=variables, notes=row.notes + replaced)


def _claude(gateway: Gateway, environ: Mapping[str, str], _arguments: tuple[str, ...]) -> Told:
    variables = {"ANTHROPIC_BASE_URL": gateway.url, **_headers(("ANTHROPIC_CUSTOM_HEADERS",), gateway, environ)}
    # At any address but Anthropic's own it loads all tools at once instead of searching for them.  Here the address is
    # Anthropic's behind perdure, which hands on whatever it is given.
    if urlsplit(gateway.anthropic_url).hostname == "api.anthropic.com" and "ENABLE_TOOL_SEARCH" not in environ:
        variables["ENABLE_TOOL_SEARCH"] = "true"
    clouds = [name for name in _CLAUDE_CLOUDS if environ.get(name, "0").lower() not in ("", "0", "false")]
    notes = tuple(f"{name} is set: Claude Code speaks to that cloud and not to perdure" for name in clouds)
    return Told(variables=variables, notes=notes)


def _codex(gateway: Gateway, environ: Mapping[str, str], _arguments: tuple[str, ...]) -> Told:
    base = f"{gateway.url}/v1"
    # Versions before `openai_base_url` read the variable, later ones ignore it.
    variables = {} if environ.get("OPENAI_BASE_URL") else {"OPENAI_BASE_URL": base}
    if not gateway.token:
        return Told(arguments=("-c", f"openai_base_url={json.dumps(base)}"), variables=variables)
    # Its own provider of OpenAI can not be given a header, so it gets a second one.  The name keeps what Codex does for
    # OpenAI alone (compaction by the provider); the token is named, not written where every user can read it.
    provider = (
        f'{{name="OpenAI", base_url={json.dumps(base)}, wire_api="responses", requires_openai_auth=true, '
        f'env_http_headers={{"{TOKEN_HEADER}"="PERDURE_TOKEN"}}}}'
    )
    arguments = ("-c", 'model_provider="perdure"', "-c", f"model_providers.perdure={provider}")
    return Told(arguments=arguments, variables={**variables, "PERDURE_TOKEN": gateway.token})


def _opencode(gateway: Gateway, environ: Mapping[str, str], _arguments: tuple[str, ...]) -> Told:
    given = environ.get(_OPENCODE, "") or "{}"
    try:
        document = json.loads(given)
        providers = document.setdefault("provider", {})
        for name in ("anthropic", "openai"):
            options = providers.setdefault(name, {}).setdefault("options", {})
            options["baseURL"] = f"{gateway.url}/v1"
            if gateway.token:
                options.setdefault("headers", {})[TOKEN_HEADER] = gateway.token
    except (ValueError, AttributeError, TypeError):
        note = f"{_OPENCODE} is not a JSON object that a provider can be added to: OpenCode speaks past perdure"
        return Told(variables={}, notes=(note,))
    return Told(variables={_OPENCODE: json.dumps(document)})


def _pi(gateway: Gateway, _environ: Mapping[str, str], arguments: tuple[str, ...]) -> Told:
    if arguments[:1] and arguments[0] in _PI_VERBS:
        return Told(variables={})
    variables = {"PERDURE_URL": gateway.url, **({"PERDURE_TOKEN": gateway.token} if gateway.token else {})}
    return Told(arguments=("--extension", str(PI_EXTENSION)), variables=variables)


def _aider(gateway: Gateway, _environ: Mapping[str, str], _arguments: tuple[str, ...]) -> Told:
    note = f"aider can not send {TOKEN_HEADER}: it will be refused (401); run perdure without PERDURE_TOKEN for it"
    return Told(variables=_sdk(gateway.url), notes=(note,) if gateway.token else ())


def _any_other(gateway: Gateway, environ: Mapping[str, str], _arguments: tuple[str, ...]) -> Told:
    names = ("ANTHROPIC_CUSTOM_HEADERS", "OPENAI_CUSTOM_HEADERS")
    note = f"a command that uses neither of the newest SDKs must send {TOKEN_HEADER} by itself"
    variables = {**_sdk(gateway.url), **_headers(names, gateway, environ)}
    return Told(variables=variables, notes=(note,) if gateway.token else ())


AGENTS: Final[Mapping[str, Callable[[Gateway, Mapping[str, str], tuple[str, ...]], Told]]] = {
    "claude": _claude,
    "codex": _codex,
    "opencode": _opencode,
    "pi": _pi,
    "aider": _aider,
}
"""By the name of the command's file; everything else is taken for a program with an SDK in it."""


def _sdk(url: str) -> dict[str, str]:
    """Two providers, each with the name that its SDK reads and the one of LiteLLM (and of OpenAI's SDK before 1.0)."""
    return {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_BASE": url,
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_BASE": f"{url}/v1",
    }


def _headers(names: tuple[str, ...], gateway: Gateway, environ: Mapping[str, str]) -> dict[str, str]:
    """The token added to the lines that are there."""
    if not gateway.token:
        return {}
    ours = f"{TOKEN_HEADER}: {gateway.token}"
    return {name: "\n".join([*_others(environ.get(name, "")), ours]) for name in names}


def _others(lines: str) -> list[str]:
    return [line for line in lines.split("\n") if line and line.partition(":")[0].strip().lower() != TOKEN_HEADER]


def _without_proxy(url: str, environ: Mapping[str, str]) -> dict[str, str]:
    """A proxy on the way to the world is none on the way to us; it would look for us on its own machine."""
    if not any(environ.get(name) or environ.get(name.lower()) for name in ("HTTP_PROXY", "ALL_PROXY")):
        return {}
    host = urlsplit(url).hostname or ""
    given = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    if host in (entry.strip() for entry in given.split(",")):
        return {}
    exceptions = f"{given},{host}" if given else host
    return {"NO_PROXY": exceptions, "no_proxy": exceptions}


PI_EXTENSION: Final = PurePath(__file__).with_name("agents_pi.mjs")
_PI_VERBS: Final = frozenset({"install", "remove", "uninstall", "update", "list", "config"})
"""Of Pi, which looks for them in the first place only; none of them speaks to a provider."""
_OPENCODE: Final = "OPENCODE_CONFIG_CONTENT"
_CLAUDE_CLOUDS: Final = ("CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY")
_ORIGINS: Final = {
    "ANTHROPIC_BASE_URL": "PERDURE_ANTHROPIC_URL",
    "ANTHROPIC_API_BASE": "PERDURE_ANTHROPIC_URL",
    "OPENAI_BASE_URL": "PERDURE_OPENAI_URL",
    "OPENAI_API_BASE": "PERDURE_OPENAI_URL",
}
"""What its user may have set → what means the same to perdure."""
