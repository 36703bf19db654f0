"""The clients that name their conversations, as they behave: Claude Code, Codex, OpenCode, Pi.

One rule: a client is a script that yields requests and is told what was answered; it knows nothing of the gateway.

Theory of operation.  A script yields a list of requests, which are sent at the same moment, and gets one `Said` for
each; an empty list says that it has nothing to ask before the next day.  A `Thread` is one conversation as its client
keeps it: it renders requests, repeats those that were cut, and runs the tools that answers call.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from tests.oracle.speech import SHARED_OPENINGS, Dialogue, Part, Words
from tests.oracle.truth import Conversation, Headers, Request, Truth, excerpt_of
from tests.oracle.wire import Json, Style, drawn_style, messages_history, responses_history

RETRIES_MAX: Final = 3
TOOL_ROUNDS_MAX: Final = 2


@dataclass(frozen=True)
class Said:
    """What became of a request."""

    parts: tuple[Part, ...] | None
    """The answer; None if the client did not get to its end."""
    answer_id: str = ""
    is_begun: bool = False
    """Cut in mid-stream, rather than before it."""


Script = Generator[list[Request], list[Said], None]
NEXT_DAY: Final[list[Request]] = []


class Life:
    """What all clients of one world share."""

    def __init__(self, words: Words, truth: Truth) -> None:
        self.words = words
        self.rng = words.rng
        self.truth = truth
        self.day = 1

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability


class Person:
    """Who pays: one account, whose credentials change."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self.account_uuid = words.uuid()
        self.device_id = words.hex(64)
        self.subject = f"user-{words.hex(12)}"
        self.key = f"sk-{words.hex(32)}"

    def rotate_key(self) -> None:
        self.key = f"sk-{self._words.hex(32)}"

    def key_headers(self, *, is_old_sdk: bool) -> Headers:
        """The same key; SDK majors disagree on its header."""
        return [("x-api-key", self.key)] if is_old_sdk else [("Authorization", f"Bearer {self.key}")]

    def token_headers(self) -> Headers:
        """A login token, another one every time."""
        claims = {"sub": self.subject, "exp": self._words.rng.randrange(10**9, 2 * 10**9), "jti": self._words.hex(16)}
        parts = ({"alg": "RS256", "typ": "JWT"}, claims, {"signature": self._words.hex(32)})
        coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
        return [("Authorization", f"Bearer {'.'.join(coded)}")]


class Thread:
    """One conversation as its client keeps it."""

    def __init__(self, life: Life, conversation: Conversation, dialogue: Dialogue | None = None) -> None:
        self.life = life
        self.words = life.words
        self.rng = life.rng
        self.conversation = conversation
        self.dialogue = dialogue or Dialogue()

    def request(self, variation: str, style: Style | None = None) -> Request:
        raise NotImplementedError

    def style(self) -> Style:
        return drawn_style(self.rng)

    def say(self, text: str, variation: str = "next turn", beside: list[Request] | None = None) -> Script:
        """One turn of the user's: asked until it is answered, over all tools that are called on the way."""
        self.dialogue.say(text)
        yield from self.ask(variation, beside)
        for _ in range(TOOL_ROUNDS_MAX):
            last = self.dialogue.entries[-1]
            if not any(part.kind == "call" for part in last.parts):
                return
            self.dialogue.run_tools(self.words)
            yield from self.ask("tool result")

    def ask(self, variation: str, beside: list[Request] | None = None) -> Script:
        request = self.request(variation)
        if self._left_one_out and not self.conversation.is_named:
            request = replace(request, may_split=True)
        batch = [request, *(beside or [])]
        self.rng.shuffle(batch)
        said = (yield batch)[batch.index(request)]
        for _ in range(RETRIES_MAX):
            if said.parts is not None:
                break
            request = self.again(request, said)
            (said,) = yield [request]
        # Whoever is never answered gives up and goes on: the model is then asked both things at once.
        if said.parts is not None:
            self.heard(said)

    @property
    def _left_one_out(self) -> bool:
        """The answer before was given up, though it may have been given: the history is another one than was said."""
        return [entry.role for entry in self.dialogue.entries[-2:]] == ["user", "user"]

    def heard(self, said: Said) -> None:
        assert said.parts is not None
        self.dialogue.hear(said.parts)

    def again(self, request: Request, said: Said) -> Request:
        """SDKs send the same bytes again; one client writes the keys in another order."""
        # An opening without an id may have been answered, and the same words again are another conversation then.
        may_split = not self.conversation.is_named and len(self.dialogue.entries) == 1
        if self.rng.random() < 0.1:
            body = _reordered(request.body)
            return replace(request, body=body, variation="retry with other key order", may_split=may_split)
        return replace(request, variation="retry of the same body", may_split=may_split)


def _reordered(body: bytes) -> bytes:
    parsed = json.loads(body)
    return json.dumps({key: parsed[key] for key in reversed(parsed)}, ensure_ascii=False).encode()


def together(*scripts: Script) -> Script:
    """Scripts that run at the same time: each step asks what all of them ask."""
    asking = [(script, batch) for script in scripts if (batch := next(script, None)) is not None]
    while asking:
        said = yield [request for _, batch in asking for request in batch]
        going: list[tuple[Script, list[Request]]] = []
        for script, batch in asking:
            told, said = said[: len(batch)], said[len(batch) :]
            try:
                going.append((script, script.send(told)))
            except StopIteration:
                continue
        asking = going


def rounds(life: Life, most: int) -> Iterator[int]:
    return iter(range(life.rng.randrange(1, most + 1)))


# -- Claude Code -----------------------------------------------------------------------------------------------------

_MAIN_TOOLS: Final = ("Agent", "Bash", "Edit", "Glob", "Grep", "Read", "TaskCreate", "WebFetch", "WebSearch", "Write")
_AGENT_TOOLS: Final = ("Bash", "Edit", "Glob", "Grep", "Read", "WebFetch", "WebSearch", "Write")
_EXPLORER_TOOLS: Final = ("Glob", "Grep", "Read", "ReportFindings")
_MAIN_PROMPT: Final = tuple(
    f"Main rule {number}: keep to the way of working number {number * 7}." for number in range(24)
)
_AGENT_PROMPT: Final = tuple(
    f"Agent rule {number}: report finding number {number * 3} briefly." for number in range(14)
)
_EXPLORER_PROMPT: Final = tuple(f"Explorer rule {number}: look into place {number * 5} only." for number in range(12))
_MEMORY_PROMPT: Final = tuple(f"Memory rule {number}: extract what lasts, kind {number * 11}." for number in range(30))


def _tool(name: str) -> Json:
    schema = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
    return {"name": name, "description": f"The tool {name} does what its name says.", "input_schema": schema}


class ClaudeCode:
    """One installation of Claude Code, used by one person in one folder."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.words = life.words
        self.person = Person(life.words)
        self.folder = f"/home/user/{life.words.hex(6)}"
        self.reminds = life.chance(0.8)
        self.has_account = life.chance(0.5)

    def live(self) -> Script:
        """A few sessions one after the other in the same process, the later ones after `/clear`."""
        for _ in range(1 if self.life.chance(0.8) else 2):
            yield from self.session()

    def session(self) -> Script:
        main = self.new_session()
        yield from self._open(main)
        for _ in rounds(self.life, 4):
            act = self.life.rng.choices(
                (self._talk, self._talk_beside, self._compact, self._next_day, self._agents, self._fork),
                weights=(8, 4, 1, 2, 3, 1),
            )[0]
            yield from act(main)

    def new_session(self, **facts: Any) -> ClaudeThread:
        conversation = self.life.truth.conversation("claude-code", is_named=True, **facts)
        return ClaudeThread(self, conversation, self.words.uuid())

    def _open(self, main: ClaudeThread) -> Script:
        beside = [main.title_request()] if self.life.chance(0.5) else []
        if self.life.chance(0.2):
            beside.append(main.quota_request())
        text = self.life.rng.choice(SHARED_OPENINGS) if self.life.chance(0.2) else self.words.sentence()
        yield from main.say(text, "first turn", beside)

    def _talk(self, main: ClaudeThread) -> Script:
        if self.life.chance(0.2):
            main.model = "claude-opus-4-8" if main.model != "claude-opus-4-8" else "claude-sonnet-4-5"
            yield from main.say(self.words.sentence(), "other model")
        else:
            yield from main.say(self.words.sentence())

    def _talk_beside(self, main: ClaudeThread) -> Script:
        beside = [self.life.rng.choice((main.topic_request, main.memory_request, main.title_request))()]
        yield from main.say(self.words.sentence(), "next turn", beside)

    def _compact(self, main: ClaudeThread) -> Script:
        yield from main.compact()
        yield from main.say(self.words.sentence(), "first turn after compaction")

    def _next_day(self, main: ClaudeThread) -> Script:
        yield NEXT_DAY
        if self.life.chance(0.4):
            self.person.rotate_key()
        main.remake_reminder()
        yield from main.say(self.words.sentence(), "next day")

    def _agents(self, main: ClaudeThread) -> Script:
        agents = [main.agent(is_marked=self.life.chance(0.6)) for _ in range(self.life.rng.choice((1, 1, 2, 3)))]
        scripts = [agent.say(self.words.sentence(), "sub-agent's first turn") for agent in agents]
        if self.life.chance(0.5):
            yield from together(*scripts)
        else:
            for script in scripts:
                yield from script
        if self.life.chance(0.4):
            yield from agents[0].say(self.words.sentence(), "sub-agent's next turn")
        yield from main.say(self.words.sentence(), "next turn after sub-agents")

    def _fork(self, main: ClaudeThread) -> Script:
        """`--fork-session`: another id over the same history; both go on."""
        fork = self.new_session(forked_from=main.conversation)
        fork.dialogue = main.dialogue.copy()
        fork.remake_reminder()
        yield from fork.say(self.words.sentence(), "first turn of a fork")
        if self.life.chance(0.5):
            yield from together(
                fork.say(self.words.sentence(), "next turn of a fork"), main.say(self.words.sentence(), "next turn")
            )


class ClaudeThread(Thread):
    """A conversation of Claude Code's: a session's own, or a sub-agent's under the same session id."""

    def __init__(self, client: ClaudeCode, conversation: Conversation, session_id: str, agent_id: str = "") -> None:
        super().__init__(client.life, conversation)
        self.client = client
        self.session_id = session_id
        self.agent_id = agent_id
        self.model = "claude-sonnet-4-5"
        self.tools: tuple[str, ...] = _MAIN_TOOLS
        self.prompt: tuple[str, ...] = _MAIN_PROMPT
        self.reminder = ""
        self.remake_reminder()

    def remake_reminder(self) -> None:
        notes = f"Today's date is 2026-03-{self.life.day:02}.\nProject notes: {self.words.sentence()}"
        self.reminder = f"<system-reminder>\nAs you answer, you can use this context:\n{notes}\n</system-reminder>"

    def agent(self, *, is_marked: bool) -> ClaudeThread:
        """A sub-agent of this conversation.  Unmarked, only its prompt and its tools tell it from a turn."""
        conversation = self.life.truth.conversation(
            "claude-code agent" if is_marked else "claude-code agent, unmarked",
            is_named=is_marked,
            parent=self.conversation,
        )
        agent = ClaudeThread(self.client, conversation, self.session_id, self.words.hex(17) if is_marked else "")
        is_explorer = self.life.chance(0.5)
        agent.tools = _EXPLORER_TOOLS if is_explorer or not is_marked else _AGENT_TOOLS
        agent.prompt = _EXPLORER_PROMPT if is_explorer else _AGENT_PROMPT
        return agent

    def style(self) -> Style:
        return drawn_style(
            self.rng,
            reminder=self.reminder if self.client.reminds else "",
            system_among="Available agent types for the tool Agent: general, explorer."
            if self.rng.random() < 0.5
            else "",
            reverses_keys=False,
        )

    def request(self, variation: str, style: Style | None = None) -> Request:
        style = style or self.style()
        messages = messages_history(self.dialogue, style)
        return self._asked(messages, variation, style=style, tools=self.tools, prompt=self.prompt)

    def again(self, request: Request, said: Said) -> Request:
        """After a cut in mid-stream: the same at once without `stream`."""
        if not said.is_begun:
            return super().again(request, said)
        body = {key: value for key, value in json.loads(request.body).items() if key != "stream"}
        body_bytes = json.dumps(body, ensure_ascii=False).encode()
        may_split = not self.conversation.is_named and len(self.dialogue.entries) == 1
        again = replace(request, body=body_bytes, stream=False, variation="retry without stream")
        return replace(again, may_split=may_split)

    def compact(self) -> Script:
        """The whole history and an instruction; afterwards it begins anew from the summary."""
        style = self.style()
        messages = messages_history(self.dialogue, style)
        messages.append({"role": "user", "content": [{"type": "text", "text": "Summarise the conversation so far."}]})
        compaction = self._asked(messages, "compaction", style=style, tools=self.tools, prompt=self.prompt, kind="")
        (said,) = yield [replace(compaction, wants="unique")]
        if said.parts is not None:
            summary = said.parts[-1].text
            self.dialogue.begin_anew(f"This session is being continued from another one that ran out.\n{summary}")
            self.dialogue.hear((Part("text", "No response requested."),))

    # -- beside the conversation -------------------------------------------------------------------------------------

    def title_request(self) -> Request:
        messages = [{"role": "user", "content": self._first_words() or "hi"}]
        prompt = ("Write a title of at most six words for the conversation.", "Answer with JSON.")
        return self._beside(messages, "title", prompt, max_tokens=512)

    def topic_request(self) -> Request:
        messages = [{"role": "user", "content": self.dialogue.entries[-1].text or self.words.sentence()}]
        prompt = ("Say whether this message begins a new topic.", "If so, name it in three words.", "Answer with JSON.")
        return self._beside(messages, "topic", prompt, max_tokens=256)

    def quota_request(self) -> Request:
        return self._beside([{"role": "user", "content": "quota"}], "quota", (), max_tokens=1)

    def memory_request(self) -> Request:
        first = [{"role": "user", "content": [{"type": "text", "text": self._first_words()}]}]
        return self._beside(first, "memory", _MEMORY_PROMPT, max_tokens=4096)

    def _first_words(self) -> str:
        return next((entry.text for entry in self.dialogue.entries if entry.text), "") or self.words.sentence()

    def _beside(self, messages: list[Json], what: str, prompt: tuple[str, ...], max_tokens: int) -> Request:
        asked = self._asked(
            messages,
            what,
            style=Style(),
            tools=(),
            prompt=prompt,
            kind="side",
            max_tokens=max_tokens,
            model=_SMALL_MODEL,
        )
        return replace(asked, wants="short", may_be_cut=False)

    def _asked(
        self,
        messages: list[Json],
        variation: str,
        *,
        style: Style,
        tools: tuple[str, ...],
        prompt: tuple[str, ...],
        kind: str = "turn",
        max_tokens: int = 64_000,
        model: str = "",
    ) -> Request:
        billing = f"x-anthropic-billing-header: cc_version=2.1.197.{self.words.hex(3)}; cc_entrypoint=cli;"
        place = (f"Working directory: {self.client.folder}", f"Today: 2026-03-{self.life.day:02}") if tools else ()
        texts = [
            billing,
            "You are a coding agent at the command line.",
            *(["\n".join((*prompt, *place))] if prompt else []),
        ]
        body: Json = {
            "model": model or self.model,
            "messages": messages,
            "system": [{"type": "text", "text": text} for text in texts],
            **({"tools": [_tool(name) for name in tools]} if tools else {}),
            "metadata": {"user_id": self._user_id()},
            "max_tokens": max_tokens,
            "stream": bool(tools),
        }
        return Request(
            target="/v1/messages?beta=true",
            headers=self._headers(),
            body=style.dumps(body),
            wire="messages",
            stream=bool(tools),
            conversation=self.conversation,
            kind=kind,
            variation=variation,
            excerpt=excerpt_of(self.dialogue.entries[-1].text if self.dialogue.entries else ""),
        )

    def _user_id(self) -> str:
        person = self.client.person
        account = person.account_uuid if self.client.has_account else ""
        named = {"device_id": person.device_id, "account_uuid": account, "session_id": self.session_id}
        return json.dumps(named, separators=(",", ":"))

    def _headers(self) -> Headers:
        agent = [("x-claude-code-agent-id", self.agent_id)] if self.agent_id else []
        return [
            ("Content-Type", "application/json"),
            ("User-Agent", "claude-cli/2.1.197 (external, cli)"),
            ("X-Claude-Code-Session-Id", self.session_id),
            *agent,
            ("X-Stainless-Retry-Count", "0"),
            ("anthropic-version", "2023-06-01"),
            *self.client.person.key_headers(is_old_sdk=True),
            ("x-app", "cli"),
        ]


_SMALL_MODEL: Final = "claude-haiku-4-5"


# -- Codex -----------------------------------------------------------------------------------------------------------


class Codex:
    """One run of Codex, logged in with a token that changes."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.words = life.words
        self.person = Person(life.words)
        self.account = life.words.uuid()
        self.folder = f"/home/user/{life.words.hex(6)}"

    def live(self) -> Script:
        conversation = self.life.truth.conversation("codex", is_named=True)
        root_id = self.words.uuid()
        root = CodexThread(self, conversation, root_id, root_id)
        yield from root.say(self.words.sentence(), "first turn")
        for _ in rounds(self.life, 4):
            act = self.life.rng.choices(("talk", "agents", "compact", "resume", "fork"), weights=(6, 3, 1, 2, 1))[0]
            match act:
                case "agents":
                    yield from self._agents(root)
                case "compact":
                    root.window += 1
                    root.dialogue.begin_anew(f"Summary of what was done: {self.words.paragraph()}")
                    yield from root.ask("first turn after compaction")
                case "resume":
                    yield NEXT_DAY
                    yield from root.say(self.words.sentence(), "next day")
                case "fork":
                    yield from self._fork(root)
                case _:
                    yield from root.say(self.words.sentence())

    def _agents(self, root: CodexThread) -> Script:
        agents = [self._agent(root) for _ in range(self.life.rng.choice((1, 2)))]
        yield from together(*(agent.say(self.words.sentence(), "sub-agent's first turn") for agent in agents))
        yield from root.say(self.words.sentence(), "next turn after sub-agents")

    def _agent(self, root: CodexThread) -> CodexThread:
        conversation = self.life.truth.conversation("codex agent", is_named=True, parent=root.conversation)
        return CodexThread(self, conversation, root.session_id, self.words.uuid(), parent=root.thread_id)

    def _fork(self, root: CodexThread) -> Script:
        conversation = self.life.truth.conversation("codex", is_named=True, forked_from=root.conversation)
        fork_id = self.words.uuid()
        fork = CodexThread(self, conversation, fork_id, fork_id)
        fork.dialogue = root.dialogue.copy()
        yield from fork.say(self.words.sentence(), "first turn of a fork")


class CodexThread(Thread):
    def __init__(
        self, client: Codex, conversation: Conversation, session_id: str, thread_id: str, parent: str = ""
    ) -> None:
        super().__init__(client.life, conversation)
        self.client = client
        self.session_id = session_id
        self.thread_id = thread_id
        self.parent = parent
        self.window = 0

    def request(self, variation: str, style: Style | None = None) -> Request:
        style = style or drawn_style(self.rng, plain_strings=False, reverses_keys=False)
        window = f"{self.thread_id}:{self.window}"
        developer = {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": _CODEX_PROMPT}]}
        place = f"<environment_context>\n  <cwd>{self.client.folder}</cwd>\n</environment_context>"
        context = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": place}]}
        named = {"session_id": self.session_id, "thread_id": self.thread_id, "x-codex-window-id": window}
        body: Json = {
            "model": "gpt-5",
            "stream": True,
            "input": [developer, context, *responses_history(self.dialogue, style)],
            "tools": [{"type": "function", "name": name, "parameters": {}} for name in ("exec_command", "write_stdin")],
            "store": False,
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": self.session_id,
            "client_metadata": named,
        }
        return Request(
            target="/v1/responses",
            headers=self._headers(window),
            body=style.dumps(body),
            wire="responses",
            stream=True,
            conversation=self.conversation,
            variation=variation,
            excerpt=excerpt_of(self.dialogue.entries[-1].text),
        )

    def _headers(self, window: str) -> Headers:
        spawned = (
            [("x-codex-parent-thread-id", self.parent), ("x-openai-subagent", "collab_spawn")] if self.parent else []
        )
        return [
            ("x-codex-window-id", window),
            *spawned,
            ("x-client-request-id", self.thread_id),
            ("session-id", self.session_id),
            ("thread-id", self.thread_id),
            ("content-type", "application/json"),
            *self.client.person.token_headers(),
            ("chatgpt-account-id", self.client.account),
            ("user-agent", "codex_exec/0.169.0 (Debian 12.0.0; x86_64)"),
        ]


_CODEX_PROMPT: Final = "\n".join(f"Codex rule {number}: patch with care, {number * 13}." for number in range(20))


# -- OpenCode and Pi -------------------------------------------------------------------------------------------------


class HeaderNamed(Thread):
    """A conversation whose client sends the same id in some headers, over any wire format's history."""

    def __init__(
        self,
        life: Life,
        conversation: Conversation,
        headers: Callable[[], Headers],
        cache_key: str = "",
    ) -> None:
        super().__init__(life, conversation)
        self._headers = headers
        self._cache_key = cache_key

    def request(self, variation: str, style: Style | None = None) -> Request:
        style = style or self.style()
        body: Json = {"model": "gpt-5", "input": responses_history(self.dialogue, style), "stream": True}
        if self._cache_key:
            body["prompt_cache_key"] = self._cache_key
        return Request(
            target="/v1/responses",
            headers=[("content-type", "application/json"), *self._headers()],
            body=style.dumps(body),
            wire="responses",
            stream=True,
            conversation=self.conversation,
            variation=variation,
            excerpt=excerpt_of(self.dialogue.entries[-1].text),
        )


def opencode(life: Life) -> Script:
    """Sub-agents have an id of their own and name their parent's."""
    person = Person(life.words)

    def thread(parent_id: str = "", **facts: Any) -> tuple[HeaderNamed, str]:
        client = "opencode agent" if parent_id else "opencode"
        conversation = life.truth.conversation(client, is_named=True, **facts)
        session_id = f"ses_{life.words.hex(26)}"
        spawned = [("x-parent-session-id", parent_id)] if parent_id else []

        def headers() -> Headers:
            ids = [("x-session-affinity", session_id), ("x-session-id", session_id), ("session-id", session_id)]
            return [*ids, *spawned, ("user-agent", "opencode/1.2.3"), *person.key_headers(is_old_sdk=False)]

        return HeaderNamed(life, conversation, headers, session_id), session_id

    main, main_id = thread()
    yield from main.say(life.words.sentence(), "first turn")
    for _ in rounds(life, 4):
        match life.rng.choices(("talk", "agent", "next day", "fork"), weights=(6, 3, 2, 1))[0]:
            case "agent":
                agent, _ = thread(main_id, parent=main.conversation)
                yield from agent.say(life.words.sentence(), "sub-agent's first turn")
                yield from agent.say(life.words.sentence(), "sub-agent's next turn")
            case "next day":
                yield NEXT_DAY
                yield from main.say(life.words.sentence(), "next day")
            case "fork":
                fork, _ = thread(forked_from=main.conversation)
                fork.dialogue = main.dialogue.copy()
                yield from fork.say(life.words.sentence(), "first turn of a fork")
            case _:
                yield from main.say(life.words.sentence())


def pi(life: Life) -> Script:
    """Over the Responses API; over Messages it names nothing and is a plain client."""
    person = Person(life.words)
    session_id = life.words.uuid()

    def headers() -> Headers:
        ids = [("session_id", session_id), ("x-client-request-id", session_id)]
        return [*ids, ("user-agent", "pi/0.50"), *person.key_headers(is_old_sdk=False)]

    main = HeaderNamed(life, life.truth.conversation("pi", is_named=True), headers, session_id)
    yield from main.say(life.words.sentence(), "first turn")
    for _ in rounds(life, 4):
        if life.chance(0.2):
            yield NEXT_DAY
        yield from main.say(life.words.sentence())
