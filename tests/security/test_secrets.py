"""No secret and no text at rest, on the wire between the programs, or shown: marked ones are sent every way there is.

One rule: a mark that nobody sent, or that the provider never got, proves nothing: both are checked too.

Theory.  Every place in a request and in an answer where a secret or a text can stand holds a mark of its own.  They go
through every wire format and every kind of failure, with both programs at their most talkative, and then everything
there is to read is searched for them: files, logs, the bytes between daemon and worker, command lines, and what the
command line and perdure's own paths show.  Ids of sessions are no secrets; what a client uses as one is kept in clear.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from daemon.app import rules_of
from daemon.chain import HashKeys
from daemon.identity import known_from
from daemon.providers import parse_turn
from tests.clients import RawAnswer
from tests.conftest import Tell
from tests.processes import DEADLINE_SECONDS, Gateway, eventually
from tests.provider import Canned, ScriptedProvider, Verbatim
from tests.provider.ledger import Arrived
from tests.security.marks import compressed, forms_of, hidden, leaks, unfolded
from tests.security.tap import Tap
from tests.system.turns import MODELS, PATHS, WIRES
from worker.protocol import Protocol
from worker.runtime import EXIT_INTERNAL
from worker.settings import load

pytestmark = pytest.mark.system

PERDURE: Final = str(Path(sys.executable).with_name("perdure"))
PLACES: Final = (
    *("key", "bearer", "token", "cookie", "unknown-header", "cloud-key", "basic", "query-key", "url-password", "as-id"),
    *(
        "system",
        "message",
        "tool-name",
        "tool-text",
        "tool-result",
        "metadata",
        "unknown-field",
        "broken-json",
        "image",
    ),
    *(
        "answer",
        "thinking",
        "arguments",
        "response-id",
        "set-cookie",
        "answer-header",
        "error",
        "event-error",
        "garbage",
    ),
    *("foreign-host", "foreign-origin", "wrong-token", "agent-name", "trace", "path", "huge", "redirect", "cut"),
)
MARK: Final = {place: f"Mk-{place}-{number:02}f7Qx" for number, place in enumerate(PLACES)}
TOKEN: Final = MARK["token"]
TOLD: Final = ("x-perdure-token", TOKEN)

FAULTS: Final = (
    "plain",
    "gzip",
    "deflate",
    "br",
    "zstd",
    "bad-gzip",
    "refused",
    "unpaid",
    "overloaded",
    "event-error",
    "cut",
    "reset",
    "garbage",
    "bad-length",
    "redirect",
)


# -- what is sent ----------------------------------------------------------------------------------------------------


def headers_of(wire: Protocol, case: str, session: str = "") -> list[tuple[str, str]]:
    """Credentials of the format and of all others that clients are known to send, and the provider's cue."""
    credential = ("x-api-key", MARK["key"]) if wire == "messages" else ("Authorization", f"Bearer {MARK['bearer']}")
    return [
        credential,
        TOLD,
        ("content-type", "application/json"),
        ("anthropic-version" if wire == "messages" else "openai-beta", "2023-06-01"),
        ("Cookie", f"login={MARK['cookie']}; x=1"),
        ("proxy-authorization", f"Basic {MARK['basic']}"),
        ("x-goog-api-key", MARK["cloud-key"]),
        ("x-conversation-label", MARK["unknown-header"]),
        ("user-agent", f"agent {MARK['agent-name']}/1.0"),
        ("traceparent", f"00-{MARK['trace']}-{MARK['trace']}-01"),
        ("tracestate", f"vendor={MARK['trace']}"),
        ("cue", case),
        *([("x-session-id", session)] if session else []),
    ]


def body_of(wire: Protocol, *, stream: bool, number: int) -> dict[str, Any]:
    """A request in which every field that can hold a text does."""
    said = f"{MARK['message']} {number}"
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": MARK["image"]}}
    tool = {"name": MARK["tool-name"], "description": MARK["tool-text"]}
    common: dict[str, Any] = {
        "model": MODELS[wire],
        "stream": stream,
        "metadata": {"user_id": MARK["metadata"], "note": MARK["metadata"]},
        "user": MARK["metadata"],
        "unknown": {"deep": [MARK["unknown-field"]]},
    }
    if wire == "messages":
        history = [
            {"role": "user", "content": [{"type": "text", "text": said}, picture]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "x", "input": {"a": said}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": MARK["tool-result"]}]},
        ]
        return common | {"max_tokens": 9, "system": MARK["system"], "messages": history, "tools": [tool]}
    tools = [{"type": "function", "function": tool, **tool}]
    if wire == "chat":
        system = [{"role": "system", "content": MARK["system"]}, {"role": "user", "content": said}]
        result = {"role": "tool", "tool_call_id": "t1", "content": MARK["tool-result"]}
        return common | {"messages": [*system, result], "tools": tools, "prompt": said}
    result = {"type": "function_call_output", "call_id": "t1", "output": MARK["tool-result"]}
    return common | {
        "instructions": MARK["system"],
        "input": [{"role": "user", "content": said}, result],
        "tools": tools,
    }


def malformed_bodies() -> Iterator[bytes]:
    broken = MARK["broken-json"]
    yield b""
    yield broken.encode()
    yield f'{{"messages": "{broken}'.encode()
    yield json.dumps({"model": {broken: 1}, "messages": [{"role": broken, "content": {broken: []}}]}).encode()
    yield f'{{"model": 7, "input": "{broken}", "metadata": "{broken}", "messages": {{"{broken}": 2}}}}'.encode()
    yield f'["{broken}"]'.encode()
    yield f'{{"messages": {"[" * 5_000}"{broken}"'.encode()
    yield json.dumps({"messages": [{"role": "user", "content": MARK["huge"] * 10_000}]}).encode()
    yield b'{"messages": [{"role": "user", "content": "' + broken.encode() + b'\xff\xfe"}]}'


# -- what is answered ------------------------------------------------------------------------------------------------

ANSWER_HEADERS: Final = (
    ("content-type", "application/json"),
    ("Set-Cookie", f"{MARK['set-cookie']} is, no cookie;;=; Path"),
    ("set-cookie", f"session={MARK['set-cookie']}; HttpOnly"),
    ("x-account-email", MARK["answer-header"]),
)


def document(wire: Protocol) -> dict[str, Any]:
    arguments = {"command": MARK["arguments"]}
    if wire == "messages":
        thought = {"type": "thinking", "thinking": MARK["thinking"], "signature": MARK["thinking"]}
        called = {"type": "tool_use", "id": "t2", "name": "x", "input": arguments}
        content = [thought, {"type": "text", "text": MARK["answer"]}, called]
        usage = {"input_tokens": 5, "output_tokens": 7}
        return {"type": "message", "id": MARK["response-id"], "role": "assistant", "content": content, "usage": usage}
    call = {"name": "x", "arguments": json.dumps(arguments)}
    if wire == "chat":
        message = {"role": "assistant", "content": MARK["answer"], "reasoning_content": MARK["thinking"]}
        message["tool_calls"] = [{"id": "t2", "type": "function", "function": call}]  # type: ignore[assignment]
        choices = [{"index": 0, "message": message, "delta": message, "finish_reason": "stop"}]
        return {"id": MARK["response-id"], "choices": choices, "usage": {"prompt_tokens": 5, "completion_tokens": 7}}
    output = [
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": MARK["thinking"]}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": MARK["answer"]}]},
        {"type": "function_call", "call_id": "t2", **call},
    ]
    usage = {"input_tokens": 5, "output_tokens": 7}
    return {"id": MARK["response-id"], "object": "response", "status": "completed", "output": output, "usage": usage}


def events(wire: Protocol) -> list[bytes]:
    """The same, streamed."""
    whole = document(wire)
    told: list[dict[str, Any]] = []
    if wire == "messages":
        told.append({"type": "message_start", "message": whole | {"content": []}})
        for index, block in enumerate(whole["content"]):
            told.append({"type": "content_block_start", "index": index, "content_block": block})
            text = {"type": "text_delta", "text": MARK["answer"]}
            told.append({"type": "content_block_delta", "index": index, "delta": text})
            told.append({"type": "content_block_stop", "index": index})
        told.append({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}})
        told.append({"type": "message_stop"})
    elif wire == "chat":
        told.append(whole)
    else:
        told.append({"type": "response.created", "response": whole | {"output": []}})
        told.append({"type": "response.output_text.delta", "delta": MARK["answer"]})
        told += [{"type": "response.output_item.done", "item": item} for item in whole["output"]]
        told.append({"type": "response.completed", "response": whole})
    lines = [f"event: {each.get('type', 'message')}\ndata: {json.dumps(each)}\n\n".encode() for each in told]
    return [*lines, b"data: [DONE]\n\n"] if wire == "chat" else lines


def answer_to(request: Arrived) -> Canned | Verbatim:
    """As the cue in its header says."""
    wire: Protocol = next((wire for wire in WIRES if request.path.endswith(PATHS[wire])), "chat")
    case, is_stream = request.header("cue"), b'"stream": true' in request.body
    pieces = events(wire) if is_stream else [json.dumps(document(wire)).encode()]
    kind = "text/event-stream" if is_stream else "application/json"
    headers = (("content-type", kind), *ANSWER_HEADERS[1:])
    whole = b"".join(pieces)
    quoting = f"no such key: {MARK['key']} {MARK['bearer']} {MARK['error']} in {MARK['message']}"
    fault = json.dumps({"type": "error", "error": {"type": "invalid_request_error", "message": quoting}}).encode()
    if case in (codings := compressed(whole)):
        return Canned(headers=(*headers, ("content-encoding", case)), body=codings[case])
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n".encode()
    match case:
        case "bad-gzip":
            return Canned(headers=(*headers, ("content-encoding", "gzip")), body=whole)
        case "refused" | "unpaid" | "overloaded":
            status = {"refused": 400, "unpaid": 401, "overloaded": 529}[case]
            return Canned(status=status, headers=ANSWER_HEADERS, body=fault)
        case "event-error":
            error = f'event: error\ndata: {{"type":"error","error":{{"message":"{MARK["event-error"]}"}}}}\n\n'
            return Canned(headers=headers, body=[pieces[0], error.encode()])
        case "cut" | "reset":
            part = whole[: len(whole) // 2] + MARK["cut"].encode()
            data = head + b"content-length: 99999\r\n\r\n" + part
            return Verbatim(data=data, then="close" if case == "cut" else "reset")
        case "garbage":
            return Verbatim(data=f"{MARK['garbage']} is no HTTP\r\n\r\n".encode(), then="close")
        case "bad-length":
            return Verbatim(data=head + f"content-length: {MARK['garbage']}\r\n\r\n".encode(), then="close")
        case "redirect":
            return Canned(status=307, headers=(("location", f"http://127.0.0.1:9/?key={MARK['redirect']}"),))
    return Canned(headers=headers, body=pieces)


# -- every way there is ----------------------------------------------------------------------------------------------


def say_everything(gateway: Gateway, provider: ScriptedProvider) -> None:
    for wire in WIRES:
        say_in_every_way(gateway, wire)
        say_what_is_refused(gateway, wire)
    provider.script(None)
    for wire in WIRES:
        leave_in_mid_stream(gateway, provider, wire)
    provider.script(answer_to)


def ask(gateway: Gateway, target: str, headers: list[tuple[str, str]], body: bytes, method: str = "POST") -> RawAnswer:
    with gateway.client() as client:
        return client.ask(method, target, headers, body)


def say_in_every_way(gateway: Gateway, wire: Protocol) -> None:
    for number, case in enumerate(FAULTS):
        for stream in (False, True):
            # Every third request names its session; the others are known by their content.
            session = f"named-{wire}-{case}" if number % 3 == 0 else ""
            body = json.dumps(body_of(wire, stream=stream, number=number)).encode()
            ask(gateway, PATHS[wire], headers_of(wire, case, session), body)
    body = json.dumps(body_of(wire, stream=False, number=99)).encode()
    for coding, packed in compressed(body).items():
        for sent in (packed, packed[:-9], body):
            ask(gateway, PATHS[wire], [*headers_of(wire, "plain"), ("content-encoding", coding)], sent)
    query, userinfo = f"?key={MARK['query-key']}&x", f"user:{MARK['url-password']}"
    for target in (
        f"{PATHS[wire]}{query}",
        f"http://{userinfo}@127.0.0.1{PATHS[wire]}{query}",
        f"/nowhere{PATHS[wire]}",
    ):
        ask(gateway, target + ("" if "?" in target else query), headers_of(wire, "plain"), body)
    for target in (f"/v1/models{query}", f"/v1/{MARK['path']}{query}", f"/nowhere/{MARK['path']}{query}"):
        ask(gateway, target, headers_of(wire, "garbage"), body)
    # Who has nothing else to put there: the credential as the session's id.
    for name in ("x-session-id", "session-id", "x-claude-code-session-id"):
        own = MARK["as-id"]
        mixed = [TOLD, ("cue", "plain"), ("authorization", f"Bearer {own}"), ("x-api-key", own), (name, own)]
        ask(
            gateway,
            PATHS[wire],
            mixed,
            json.dumps(body_of(wire, stream=False, number=7) | {"conversation": own}).encode(),
        )


def say_what_is_refused(gateway: Gateway, wire: Protocol) -> None:
    for body in malformed_bodies():
        ask(gateway, PATHS[wire], headers_of(wire, "refused"), body)
    plain = json.dumps(body_of(wire, stream=False, number=5)).encode()
    wrong = [header for header in headers_of(wire, "plain") if header != TOLD]
    assert ask(gateway, PATHS[wire], [*wrong, ("x-perdure-token", MARK["wrong-token"])], plain).status == 401
    strange = [("Host", f"{MARK['foreign-host']}.example"), ("Origin", f"https://{MARK['foreign-origin']}.example")]
    ask(gateway, PATHS[wire], [*wrong, *strange], plain)
    # Whom one asks for is an id again.
    for own in ("/api/sessions/anybody", f"/api/{MARK['path']}", f"/ui/{MARK['path']}"):
        ask(gateway, f"{own}?key={MARK['query-key']}", headers_of(wire, "plain"), b"", "GET")
    broken = [
        (f"/{MARK['path']} {MARK['message']}", headers_of(wire, "plain")),
        (PATHS[wire], [(f"x api {MARK['key']}", MARK["key"])]),
        (PATHS[wire], [("content-length", MARK["key"])]),
        (PATHS[wire], [("transfer-encoding", MARK["key"])]),
        (PATHS[wire], [("x-api-key", f"{MARK['key']}\0")]),
        (PATHS[wire], [("x-api-key", MARK["key"] * 5_000)]),
        (PATHS[wire], [*headers_of(wire, "plain"), ("transfer-encoding", "chunked")]),
    ]
    for target, headers in broken:
        ask(gateway, target, headers, f"{MARK['broken-json']}\r\n".encode())


def leave_in_mid_stream(gateway: Gateway, provider: ScriptedProvider, wire: Protocol) -> None:
    gate = f"leaving-{wire}"
    body = json.dumps(body_of(wire, stream=True, number=0)).replace(MARK["message"], f"{MARK['message']} hold:{gate}")
    with gateway.client() as client:
        client.send("POST", PATHS[wire], headers_of(wire, ""), body.encode())
        provider.wait_held(gate)
    provider.wait_until(lambda: provider.answers[-1].ended)
    provider.release(gate)


# -- everything there is to read -------------------------------------------------------------------------------------


def files_under(*directories: Path) -> dict[str, bytes]:
    paths = [path for directory in directories for path in directory.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in paths}


def shown_on_paths(gateway: Gateway) -> dict[str, bytes]:
    paths = ["/healthz", "/readyz", "/metrics", "/api/sessions", "/api/costs", "/ui"]
    paths += [f"/api/sessions/{shown['session_id']}" for shown in gateway.sessions()[:50]]
    with gateway.client() as client:
        return {path: client.ask("GET", path, [TOLD]).body for path in paths}


def shown_by_command(gateway: Gateway) -> dict[str, bytes]:
    first = gateway.sessions()[0]["session_id"]
    verbs = (["status"], ["sessions"], ["sessions", "--json"], ["show", first], ["show", first, "--json"])
    more = (["session", "log"], ["costs", "--json"], ["doctor"], ["backup", str(gateway.directory / "copy.db")])
    environ = {"PATH": os.environ["PATH"], "PERDURE_STATE_DIR": str(gateway.directory), "PERDURE_TOKEN": TOKEN}
    environ["PERDURE_LISTEN"] = f"127.0.0.1:{gateway.port}"
    shown = {}
    for verb in (*verbs, *more):
        done = subprocess.run(
            [PERDURE, *verb], env=environ, capture_output=True, timeout=4 * DEADLINE_SECONDS, check=False
        )
        shown[f"perdure {' '.join(verb)}"] = done.stdout + done.stderr
    return shown


def tapped(provider: ScriptedProvider, tap: Tap, **settings: object) -> Gateway:
    """A gateway whose daemon speaks to its worker through the tap."""
    daemon = ["/usr/bin/env", f"PERDURE_WORKER_URL=ipc://{tap.path}", sys.executable, "-P", "-m", "daemon"]
    return Gateway(provider, daemons=1, programs={"daemon": daemon}, worker_url=f"ipc://{tap.target}", **settings)


def test_no_mark_is_found_anywhere(tell: Tell, tmp_path: Path) -> None:
    config = tmp_path / "perdure.toml"
    config.write_text('[providers]\nnowhere = "http://127.0.0.1:9/prefix"\n')
    with ScriptedProvider(seed=41) as provider, Tap() as tap:
        with tapped(
            provider, tap, token=TOKEN, log_level="debug", tick_seconds=0.1, body_bytes=100_000, config=config
        ) as gateway:
            gateway.start()
            provider.script(answer_to)
            say_everything(gateway, provider)
            gateway.kill("worker")
            for wire in WIRES:
                body = json.dumps(body_of(wire, stream=False, number=1_000)).encode()
                assert ask(gateway, PATHS[wire], headers_of(wire, "plain"), body).status == 200
            assert gateway.stop("daemon") == 0
            left_behind = files_under(gateway.directory / "spill")
            gateway.start()
            eventually(lambda: all(row.ended_at for row in gateway.rows()), what="everything is settled")
            places = shown_on_paths(gateway) | shown_by_command(gateway) | left_behind
            for name in ("worker", "daemon"):
                places[f"ps {name}"] = Path(f"/proc/{gateway.pid(name)}/cmdline").read_bytes()
            places |= files_under(gateway.directory, tap.path.parent)
            gateway.kill("daemon", signal.SIGABRT)
            gateway.kill("worker", signal.SIGSEGV)
            at_the_end = files_under(gateway.directory)
            places |= {f"{name} at the end": data for name, data in at_the_end.items() if data != places.get(name)}
            rows = gateway.rows()
        places |= tap.seen()
    found = leaks(places, MARK.values())
    assert not found, "\n".join(found[:40])
    prove_that_there_was_something_to_find(places, [*provider.requests], {row.status for row in rows}, len(rows))
    tell(f"secrets: {len(MARK)} marks in {sum(map(len, places.values())):,} bytes of {len(places)} places, none found")


def prove_that_there_was_something_to_find(
    places: dict[str, bytes], arrived: list[Arrived], statuses: set[str], rows: int
) -> None:
    assert rows > 80 and statuses == {"complete", "error", "interrupted"}
    names = {Path(place).name for place in places}
    assert names >= {"perdure.db", "perdure.db-wal", "daemon.log", "worker.log", "copy.db", "00000001.writes"}
    assert sum(len(data) for place, data in places.items() if "wire" in place) > 100_000, "the wire was tapped"
    assert b"named-messages-plain" in places["/api/sessions"], "ids of sessions are shown"
    (log,) = (data.decode() for place, data in places.items() if Path(place).name == "daemon.log")
    assert log.count(" turn settled request=") >= rows, "every row has a line in the log"
    everything = b"\0".join(
        b"\0".join([each.target.encode(), repr(each.headers).encode(), each.body]) for each in arrived
    )
    sent = {place for place, mark in MARK.items() if mark.encode() in everything}
    # What perdure takes off, refuses, or finds too large.
    kept_from_the_provider = {"token", "basic", "url-password", "wrong-token", "foreign-host", "foreign-origin", "huge"}
    of_answers = {"answer", "thinking", "arguments", "response-id", "set-cookie", "answer-header", "error"}
    of_answers |= {"event-error", "garbage", "redirect", "cut"}
    assert sent == MARK.keys() - kept_from_the_provider - of_answers
    asking = [(case, stream) for case in FAULTS for stream in (b'"stream": false', b'"stream": true')]
    answered = b"".join(bytes_of(answer_to(asked(case, stream))) for case, stream in asking)
    assert {place for place in of_answers if MARK[place].encode() not in answered} == set()


def asked(case: str, body: bytes) -> Arrived:
    headers = (("cue", case),)
    return Arrived(number=0, connection=0, method="POST", target=PATHS["messages"], headers=headers, body=body, at=0.0)


def bytes_of(answer: Canned | Verbatim) -> bytes:
    if isinstance(answer, Verbatim):
        return answer.data if isinstance(answer.data, bytes) else b"".join(answer.data)
    body = answer.body if isinstance(answer.body, bytes) else b"".join(answer.body)
    return repr(answer.headers).encode() + body


# -- faults of perdure's own -----------------------------------------------------------------------------------------

FAULTY: Final = """
import gc, sys, threading
from pathlib import Path
from daemon import providers
from daemon.sessions import Sessions

parse_turn, flush = providers.parse_turn, Sessions.flush

class Late:
    def __init__(self, text): self.text = text
    def __del__(self): raise RuntimeError(self.text)

def fail(text):
    raise LookupError(text)

def faulty_turn(speaks, body, fields):
    if b"fail-in-thread" in body:
        threading.Thread(target=fail, args=(body,)).start()
    if b"fail-late" in body:
        Late(body.decode()); gc.collect()
    if b"fail-here" in body:
        try:
            fail(body.decode())
        except LookupError as error:
            raise ValueError(f"can not read {body!r}") from error
    return parse_turn(speaks, body, fields)

def faulty_flush(self, limit):
    if Path("fail-in-background").exists():
        raise KeyError(Path("fail-in-background").read_text())
    return flush(self, limit)

providers.parse_turn, Sessions.flush = faulty_turn, faulty_flush
from daemon.__main__ import main
sys.exit(main())
"""


def test_internal_error_logs_its_place_and_nothing_that_it_worked_on() -> None:
    program = [sys.executable, "-P", "-c", FAULTY]
    with (
        ScriptedProvider(seed=43) as provider,
        Gateway(provider, programs={"daemon": program}, log_level="debug", tick_seconds=0.1) as gateway,
    ):
        gateway.start()
        for fault, status in (("fail-here", 500), ("fail-in-thread", 200), ("fail-late", 200)):
            body = json.dumps(body_of("messages", stream=False, number=1) | {"fault": fault}).encode()
            assert ask(gateway, PATHS["messages"], headers_of("messages", "plain"), body).status == status
        eventually(lambda: gateway.log("daemon").count("its text is not logged") >= 4)
        (gateway.directory / "fail-in-background").write_text(MARK["message"])
        assert gateway.wait_stopped("daemon") == EXIT_INTERNAL
        (gateway.directory / "fail-in-background").unlink()
        log = gateway.log("daemon")
        found = leaks(files_under(gateway.directory), MARK.values())
        # These tracebacks are what was asked for.
        (gateway.directory / "daemon.log").unlink()
    assert not found, "\n".join(found)
    for kind in ("ValueError", "LookupError", "RuntimeError", "KeyError"):
        assert f"{kind} (its text is not logged" in log, kind
    assert all(re.match(r"\d{4}-\d\d-\d\dT|perdure daemon: ", line) for line in log.splitlines()), "one event, one line"
    assert "daemon/gateway.py" in log and "in faulty_turn" in log and "uncaught in a thread" in log
    assert "perdure daemon: internal error: KeyError at " in log


def test_credential_in_the_place_of_an_id_names_nothing() -> None:
    rules, keys = rules_of(load({}, {})), HashKeys(store=b"s" * 32, early=b"e" * 32)
    key = MARK["as-id"]
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "conversation": key}).encode()
    turn = parse_turn("chat", body, rules.fields)
    assert turn is not None
    places = [*rules.session_headers, *rules.account_headers, *rules.parent_headers, *rules.agent_headers]
    for credential in (("x-api-key", key), ("Authorization", f"Bearer {key}"), ("authorization", key)):
        known = known_from([credential, *((name, key) for name in places)], turn, body, keys, rules)
        assert (known.minted, known.also_minted, known.agent, known.parent_session_id) == (None, (), None, "")
        assert known.account and not leaks({"account": known.account.encode()}, [key])
    # The same text from somebody with another key is an id like any other.
    other = known_from([("x-api-key", "other"), ("x-session-id", key)], turn, body, keys, rules)
    assert other.minted == ("x-session-id", key)


# -- what finds them -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_mark_is_found_however_it_is_hidden(place: str) -> None:
    for number, content in enumerate(hidden(MARK[place])):
        assert leaks({"place": b"\0binary\xff" * 9 + content + b"\0tail" * 9}, [MARK[place]]), (number, content)


def test_mark_is_not_found_where_it_is_not() -> None:
    assert not leaks({"place": b"".join(mark[:-1].encode() for mark in MARK.values())}, MARK.values())
    assert len({form for mark in MARK.values() for form in forms_of(mark)}) > 10 * len(MARK)
    assert all(len(form) >= 8 for mark in MARK.values() for form in forms_of(mark)), "short ones are found anywhere"
    assert list(unfolded(b"\x1f\x8b\x08 no stream")) == [b"\x1f\x8b\x08 no stream"]


def test_tap_hears_what_crosses() -> None:
    with ScriptedProvider() as provider, Tap() as tap:
        with tapped(provider, tap) as gateway:
            gateway.start()
            headers = [("x-api-key", "k"), ("x-session-id", "Mk-an-id-00f7Qx")]
            ask(gateway, PATHS["messages"], headers, b'{"messages": [{"role": "user", "content": "x"}]}')
        assert any("wire" in each for each in leaks(tap.seen(), ["Mk-an-id-00f7Qx"]))
