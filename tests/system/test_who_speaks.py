"""Who is speaking, told over real processes: sub-agents, side calls, forks, restarts, and absent workers.

One rule: every test is a story that a client's user would tell, and asks what `perdure sessions` then shows.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from daemon.identity import derived_id
from tests.clients import AnthropicTalk, ChatTalk, ResponsesTalk, Said
from tests.processes import DEADLINE_SECONDS, Gateway, eventually
from tests.provider import ScriptedProvider

pytestmark = pytest.mark.system

SESSION = "x-claude-code-session-id"
AGENT = "x-claude-code-agent-id"


def tools(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "description": f"does {name}", "input_schema": {"type": "object"}} for name in names]


def functions(*names: str) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in names]


WORK = {
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.1.abc; cc_entrypoint=cli;"},
        {
            "type": "text",
            "text": "You work on code.\nBe brief.\nToday is Monday.",
            "cache_control": {"type": "ephemeral"},
        },
    ],
    "tools": tools("Agent", "Bash", "Edit", "Glob", "Grep", "Read", "Write"),
}
SUB_WORK = {"system": "You search files.\nReport what you found.", "tools": tools("Glob", "Grep", "Read")}
TITLE = {"system": "Write a title of at most six words for this conversation. Return JSON."}


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider(seed=31) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(provider: ScriptedProvider) -> Iterator[Gateway]:
    with Gateway(provider, daemons=2, tick_seconds=0.2) as running:
        running.start()
        yield running


@pytest.fixture
def alone(provider: ScriptedProvider) -> Iterator[Gateway]:
    """A gateway of the test's own, to be killed."""
    with Gateway(provider, daemons=2) as running:
        running.start()
        yield running


def by_header(gateway: Gateway, name: str, *values: str) -> dict[str, Any]:
    return gateway.session(derived_id(name, *values))


def at_once(*acts: Callable[[], object]) -> None:
    """All at the same moment."""
    gate = threading.Barrier(len(acts))

    def run(act: Callable[[], object]) -> None:
        gate.wait()
        act()

    with ThreadPoolExecutor(len(acts)) as pool:
        for running in [pool.submit(run, act) for act in acts]:
            running.result()


def kinds_of(gateway: Gateway, session_id: str) -> list[str]:
    return sorted(row.kind for row in gateway.rows() if row.session_id == session_id)


# -- side calls ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["title", "work"])
def test_side_calls_at_the_same_moment_are_booked_beside_the_conversation(gateway: Gateway, first: str) -> None:
    name = f"side-calls-{first}"
    with ExitStack() as open_talks:

        def title() -> None:
            talk(TITLE, "daemon-2", model="claude-haiku-4-5").say("mend the roof")

        def talk(extra: Mapping[str, Any], daemon: str = "daemon", **more: Any) -> AnthropicTalk:
            return open_talks.enter_context(AnthropicTalk(gateway.url_of(daemon), name, extra=extra, **more))

        work = talk(WORK)
        probe = talk({"max_tokens": 1}, "daemon-2", model="claude-haiku-4-5")
        topic = talk({"system": "Is this a new conversation topic? Answer with JSON."}, model="claude-haiku-4-5")
        untold = talk({"system": "Sort this message.\nOne word."}, "daemon-2", model="claude-haiku-4-5")
        memory = talk({"system": "Keep what is worth keeping.", "tools": tools("Remember")}, "daemon-2")
        probe.say("quota")
        if first == "title":
            title()
        at_once(
            lambda: work.say("mend the roof words:40", stream=True),
            title,
            lambda: topic.say("mend the roof"),
        )
        before = by_header(gateway, SESSION, name)
        at_once(
            lambda: work.say("and the door words:40", stream=True),
            title,
            lambda: untold.say("and the door"),
            lambda: memory.say("mend the roof words:40"),
        )
        shown = by_header(gateway, SESSION, name)
    assert shown["turns"] == 2
    assert shown["message_count"] == 3
    kinds = kinds_of(gateway, shown["session_id"])
    assert kinds.count("turn") == 2
    assert kinds.count("side") == (7 if first == "title" else 6)
    assert shown["model"] == "claude-sonnet-4-6"
    assert shown["gradient"]["last_known_input"] > before["gradient"]["last_known_input"] > 0
    assert shown["cost_nanousd"] == sum(
        row.cost_nanousd or 0 for row in gateway.rows() if row.session_id == shown["session_id"]
    )


def test_side_call_that_comes_before_the_first_turn_is_known_for_one_when_it_ends(
    gateway: Gateway, provider: ScriptedProvider
) -> None:
    untold = {"system": "Sort this message.\nOne word."}
    with (
        AnthropicTalk(gateway.url_of("daemon-2"), "early-aside", extra=untold) as aside,
        AnthropicTalk(gateway.url, "early-aside", extra=WORK) as work,
        ThreadPoolExecutor(1) as pool,
    ):
        early = pool.submit(aside.say, "mend the fence stall:fence")
        eventually(lambda: [kind for kind in _kinds_under(gateway, "early-aside") if kind == "turn"])
        work.say("mend the fence")
        provider.release("fence")
        session_id = early.result().session
        work.say("and the gate")
    assert kinds_of(gateway, session_id) == ["side", "turn", "turn"]
    shown = gateway.session(session_id)
    assert (shown["turns"], shown["message_count"]) == (2, 3)


def _kinds_under(gateway: Gateway, value: str) -> list[str]:
    return kinds_of(gateway, derived_id(SESSION, value))


MEMORY = {"system": "Keep what is worth keeping.", "tools": tools("Remember", "Forget", "Look")}
WARM_UP = {"system": "You search files.", "tools": tools("Glob", "Grep")}
NAMING = {"system": "Find a kebab-case name."}


@pytest.mark.parametrize("first", [MEMORY, WARM_UP, NAMING], ids=["memory extraction", "warm-up of an agent", "naming"])
def test_what_comes_before_the_conversation_under_its_id_is_beside_it(gateway: Gateway, first: dict[str, Any]) -> None:
    name = f"came-first-{first['tools'][0]['name'] if 'tools' in first else 'naming'}"
    with (
        AnthropicTalk(gateway.url_of("daemon-2"), name, extra=first) as early,
        AnthropicTalk(gateway.url, name, extra=WORK) as work,
    ):
        early.say("mend the gate" if first is MEMORY else "warm up")
        session_ids = {work.say(text).session for text in ("mend the gate", "and the lock", "and the key")}
    (session_id,) = session_ids
    assert session_id == derived_id(SESSION, name)
    assert kinds_of(gateway, session_id) == ["side", "turn", "turn", "turn"]
    shown = gateway.session(session_id)
    assert (shown["turns"], shown["message_count"], shown["parent_session_id"]) == (3, 5, None)
    assert shown["gradient"]["last_known_input"] == work_input(gateway, session_id)


def work_input(gateway: Gateway, session_id: str) -> int:
    rows = [row for row in gateway.rows() if row.session_id == session_id and row.kind == "turn"]
    return rows[-1].usage.prompt_tokens if rows[-1].usage else 0


def test_conversation_id_keeps_its_turns_whatever_is_new_in_them(gateway: Gateway) -> None:
    """The provider keeps the history, and instructions are said anew with every request."""
    sessions = set()
    for number in range(5):
        extra = {
            "conversation": "conv_turns",
            "instructions": f"Instruction {number}.",
            "tools": [{"type": "function", "name": f"tool_{number}", "parameters": {"type": "object"}}],
        }
        with ResponsesTalk(gateway.url_of(gateway.daemons[number % 2]), extra=extra) as talk:
            sessions.add(talk.say(f"step {number}").session)
    (session_id,) = sessions
    assert kinds_of(gateway, session_id) == ["turn"] * 5


def test_any_of_the_names_that_an_id_came_under_names_the_session(gateway: Gateway) -> None:
    user = {"metadata": {"user_id": json.dumps({"session_id": "two-names", "device_id": "d"})}}
    with AnthropicTalk(gateway.url, "two-names", extra=WORK | user) as talk:
        session_id = talk.say("one").session
        with AnthropicTalk(gateway.url_of("daemon-2"), extra=WORK | user) as stripped:
            stripped.history = talk.history
            assert stripped.say("two").session == session_id


def test_conversation_handed_to_another_agent_goes_on_as_that_agents(gateway: Gateway) -> None:
    other = {"system": "You plan.\nYou never write code.", "tools": tools("Ask", "Plan", "Look")}
    with (
        AnthropicTalk(gateway.url, "handed-on", extra=WORK) as first,
        AnthropicTalk(gateway.url_of("daemon-2"), "handed-on", extra=other) as second,
    ):
        first.say("one")
        second.history = first.history
        said = [second.say(text) for text in ("two", "three", "four")]
    assert kinds_of(gateway, said[0].session) == ["side", "turn", "turn", "turn"]
    assert gateway.session(said[0].session)["message_count"] == 7


def test_side_call_on_another_daemon_leaves_the_owner_alone(gateway: Gateway) -> None:
    with AnthropicTalk(gateway.url, "owned", extra=WORK) as work:
        work.say("begin")
        owner = gateway.query("SELECT owner, epoch FROM session_state WHERE header_session_id = 'owned'")
        with AnthropicTalk(gateway.url_of("daemon-2"), "owned", extra=TITLE) as title:
            title.say("begin")
        with AnthropicTalk(gateway.url_of("daemon-2"), "owned", extra={"system": "Sort this."}) as untold:
            untold.say("begin")
        assert gateway.query("SELECT owner, epoch FROM session_state WHERE header_session_id = 'owned'") == owner
        work.say("go on")
        assert gateway.query("SELECT owner, epoch FROM session_state WHERE header_session_id = 'owned'") == owner
    assert by_header(gateway, SESSION, "owned")["turns"] == 2


def test_session_whose_only_request_was_a_probe_has_no_turns(gateway: Gateway) -> None:
    with AnthropicTalk(gateway.url, "probed", extra={"max_tokens": 1}) as probe:
        said = probe.say("quota")
    shown = by_header(gateway, SESSION, "probed")
    assert said.session == shown["session_id"]
    assert (shown["turns"], shown["message_count"], shown["last_turn_at"], shown["gradient"]) == (0, 0, None, None)


# -- sub-agents ----------------------------------------------------------------------------------------------------


def test_claude_codes_sub_agents_are_children_and_their_cost_rolls_up(gateway: Gateway) -> None:
    with AnthropicTalk(gateway.url, "with-agents", extra=WORK) as work:
        work.say("use two agents")

        def agent(number: int) -> None:
            headers = {AGENT: f"agent-{number}"}
            url = gateway.url_of(gateway.daemons[number % 2])
            with AnthropicTalk(url, "with-agents", headers=headers, extra=SUB_WORK) as talk:
                said = talk.say(f"search {number} use-tool:1")
                assert talk.answer_tools(said).session == said.session

        at_once(lambda: agent(1), lambda: agent(2))
        work.say("thanks")
    parent = by_header(gateway, SESSION, "with-agents")
    children = [by_header(gateway, AGENT, SESSION, "with-agents", f"agent-{number}") for number in (1, 2)]
    assert parent["turns"] == 2
    assert parent["message_count"] == 3
    for child in children:
        assert child["parent_session_id"] == parent["session_id"]
        assert child["turns"] == 2
        assert child["tree_cost_nanousd"] == child["cost_nanousd"]
    whole = parent["cost_nanousd"] + sum(child["cost_nanousd"] for child in children)
    assert parent["tree_cost_nanousd"] == whole > parent["cost_nanousd"]


def test_codex_threads_are_children_of_the_thread_that_started_them(gateway: Gateway) -> None:
    def headers(thread: str, *parent: str) -> dict[str, str]:
        said = {"session-id": "codex-1", "thread-id": thread, "x-client-request-id": thread}
        return said | ({"x-codex-parent-thread-id": parent[0], "x-openai-subagent": "collab_spawn"} if parent else {})

    for thread, *parent in (["codex-1"], ["codex-2", "codex-1"], ["codex-3", "codex-2"]):
        with ResponsesTalk(gateway.url, headers=headers(thread, *parent)) as talk:
            talk.say(f"I am {thread}")
    first = by_header(gateway, "session-id", "codex-1")
    second = by_header(gateway, "thread-id", "codex-2")
    third = by_header(gateway, "thread-id", "codex-3")
    assert first["parent_session_id"] is None
    assert second["parent_session_id"] == first["session_id"]
    assert third["parent_session_id"] == second["session_id"]
    assert first["tree_cost_nanousd"] == sum(each["cost_nanousd"] for each in (first, second, third))
    assert second["tree_cost_nanousd"] == second["cost_nanousd"] + third["cost_nanousd"]


def test_opencodes_child_names_its_parent_beside_its_own_id(gateway: Gateway) -> None:
    for own, *parent in (["ses_1"], ["ses_2", "ses_1"]):
        said = {"x-session-affinity": own, "x-session-id": own}
        said |= {"x-parent-session-id": parent[0]} if parent else {}
        with ChatTalk(gateway.url, headers=said) as talk:
            talk.say(f"I am {own}")
    parent_id = by_header(gateway, "x-session-id", "ses_1")["session_id"]
    assert by_header(gateway, "x-session-id", "ses_2")["parent_session_id"] == parent_id


def test_unmarked_sub_agent_is_told_apart_by_prompt_and_tools(alone: Gateway) -> None:
    with (
        AnthropicTalk(alone.url, "unmarked", extra=WORK) as work,
        AnthropicTalk(alone.url_of("daemon-2"), "unmarked", extra=SUB_WORK) as sub,
        AnthropicTalk(alone.url, "unmarked", extra=SUB_WORK) as other,
    ):
        parent_id = work.say("begin").session
        child = sub.say("search the attic use-tool:1")
        alone.kill_all()
        alone.start()
        assert sub.answer_tools(child).session == child.session
        stranger = other.say("search the cellar").session
        assert work.say("go on").session == parent_id
    assert len({parent_id, child.session, stranger}) == 3
    for session_id in (child.session, stranger):
        assert alone.session(session_id)["parent_session_id"] == parent_id
    parent = alone.session(parent_id)
    assert (parent["turns"], parent["message_count"]) == (2, 3)


def test_branches_at_the_same_moment_on_two_daemons_are_sessions_of_their_own(gateway: Gateway) -> None:
    """One daemon owns the session and asks nobody; the other asks, and may be first."""
    for trial in range(10):
        with AnthropicTalk(gateway.url) as talk:
            talk.say(f"opening {trial} words:30")
            history = list(talk.history)
        both = threading.Barrier(2)
        sessions: dict[str, str] = {}
        branches = [
            threading.Thread(target=_branch, args=(gateway, daemon, history, both, sessions))
            for daemon in gateway.daemons
        ]
        for each in branches:
            each.start()
        for each in branches:
            each.join(DEADLINE_SECONDS)
        assert len(set(sessions.values())) == 2, f"trial {trial}: {sessions}"


def _branch(
    gateway: Gateway, daemon: str, history: list[dict[str, Any]], both: threading.Barrier, sessions: dict[str, str]
) -> None:
    with AnthropicTalk(gateway.url_of(daemon)) as talk:
        talk.history = list(history)
        both.wait(DEADLINE_SECONDS)
        sessions[daemon] = talk.say(f"this way goes {daemon}").session


# -- forks, compaction, resume -------------------------------------------------------------------------------------


def test_new_id_over_the_same_history_is_a_fork(gateway: Gateway) -> None:
    with AnthropicTalk(gateway.url, "origin", extra=WORK) as talk:
        talk.say("one")
        talk.say("two")
        early = list(talk.history[:2])
        late = list(talk.history)
        origin = talk.say("three").session
    for number, history in enumerate((early, late)):
        with AnthropicTalk(gateway.url_of("daemon-2"), f"fork-{number}", extra=WORK) as fork:
            fork.history = history
            forked = fork.say("something else").session
        shown = gateway.session(forked)
        assert forked != origin
        assert shown["forked_from"] == origin
        assert shown["cost_nanousd"] < gateway.session(origin)["cost_nanousd"]
    assert gateway.session(origin)["turns"] == 3


def test_compaction_keeps_the_session_though_its_history_begins_anew(gateway: Gateway) -> None:
    with AnthropicTalk(gateway.url, "compacted", extra=WORK) as talk:
        before = talk.say("long work")
        talk.say("now sum up all of it")
        talk.history = []
        talk.say("This session is continued from one that ran out of context. Summary: long work.")
        after = talk.say("go on")
    shown = gateway.session(after.session)
    assert after.session == before.session
    assert (shown["turns"], shown["message_count"], shown["forked_from"]) == (4, 3, None)
    assert set(kinds_of(gateway, after.session)) == {"turn"}


def test_conversation_without_any_id_is_found_next_day_with_its_beginning_sent_otherwise(alone: Gateway) -> None:
    def reminder(day: str) -> dict[str, Any]:
        return {"type": "text", "text": f"<system-reminder>\nToday is {day}.\n</system-reminder>"}

    with AnthropicTalk(alone.url) as talk:
        talk.history = []
        first = talk._exchange([{"role": "user", "content": [reminder("Monday"), _text("begin here", True)]}], True)
        talk.say("go on")
        alone.kill_all()
        alone.start()
        talk.history[0] = {"content": [reminder("Tuesday"), _text("begin here")], "role": "user"}
        talk.history[2] = {"role": "user", "content": "go on"}
        assert talk.say("and on").session == first.session
    with AnthropicTalk(alone.url_of("daemon-2")) as again:
        again.history = [{"role": "user", "content": "begin here"}, *talk.history[1:]]
        assert again.say("further").session == first.session
    assert [shown["turns"] for shown in alone.sessions()] == [4]


def _text(text: str, is_marked: bool = False) -> dict[str, Any]:
    return {"type": "text", "text": text, **({"cache_control": {"type": "ephemeral"}} if is_marked else {})}


def test_equal_openings_stay_two_and_hi_twice_is_two(gateway: Gateway) -> None:
    def say(text: str) -> Said:
        with ChatTalk(gateway.url) as talk:
            return talk.say(text)

    assert say("hi").session != say("hi").session
    with ChatTalk(gateway.url) as one, ChatTalk(gateway.url_of("daemon-2")) as two:
        first, second = one.say("same words words:5"), two.say("same words words:6")
        one.history[-1]["content"], two.history[-1]["content"] = first.text, second.text
        assert one.say("go on").session == first.session
        assert two.say("go on").session == second.session
        assert first.session != second.session


# -- what the provider keeps ---------------------------------------------------------------------------------------


def test_previous_response_id_keeps_one_session_over_kills_and_branches_into_forks(alone: Gateway) -> None:
    with ResponsesTalk(alone.url, stateful=True) as talk:
        first = talk.say("one")
        branch_at = talk._previous, talk._seen, list(talk.history)
        talk.say("two", stream=True)
        alone.kill_all()
        alone.start()
        assert talk.say("three").session == first.session
        talk._previous, talk._seen, talk.history = branch_at
        branch = talk.say("two, but otherwise").session
        assert talk.say("three, but otherwise").session == branch
    assert branch != first.session
    assert alone.session(branch)["forked_from"] == first.session
    assert alone.session(first.session)["turns"] == 3


def test_history_sent_whole_after_turns_that_named_the_response_is_no_strangers(gateway: Gateway) -> None:
    with ResponsesTalk(gateway.url, stateful=True) as talk:
        talk.say("one")
        talk._stateful, talk._previous, talk._seen = False, None, 0
        whole = talk.say("two")
    assert gateway.session(whole.session)["turns"] == 2


def test_conversation_id_of_the_responses_api_names_the_session(gateway: Gateway) -> None:
    sessions = set()
    for wish in ({"conversation": "conv_1"}, {"conversation": {"id": "conv_1"}}):
        for daemon in gateway.daemons:
            with ResponsesTalk(gateway.url_of(daemon), extra=wish) as talk:
                sessions.add(talk.say("something new").session)
    # The same id in its two spellings is in two body fields.
    assert len(sessions) == 1


# -- headers that nobody knows -------------------------------------------------------------------------------------


def converse(gateway: Gateway, texts: Sequence[str], headers: Mapping[str, str]) -> list[Said]:
    with ChatTalk(gateway.url, headers=headers) as talk:
        return [talk.say(text) for text in texts]


def test_unknown_header_is_learned_and_then_names_a_conversation_whose_beginning_was_cut(gateway: Gateway) -> None:
    agent = {"user-agent": "homemade/1.0"}
    for number in (1, 2):
        converse(gateway, ["a", "b", "c"], agent | {"x-conversation-id": f"conversation-{number}"})
    with ChatTalk(gateway.url, headers=agent | {"x-conversation-id": "conversation-3"}) as talk:
        # An answer that could be anybody's would prove nothing.
        sessions = {talk.say(f"{text} words:40").session for text in ("long ago", "later", "now")}
        del talk.history[:2]
        assert {talk.say("the window slid").session} == sessions
    shown = gateway.session(sessions.pop())
    assert shown["turns"] == 4


def test_header_of_a_process_with_two_conversations_never_names_one(gateway: Gateway) -> None:
    agent = {"user-agent": "processed/1.0", "x-run-session": "process-0001"}
    first, second = (converse(gateway, ["a", "b", "c", text], agent) for text in ("d", "e"))
    third = converse(gateway, ["f"], agent)
    assert len({first[0].session, second[0].session, third[0].session}) == 3


# -- without a worker ----------------------------------------------------------------------------------------------


def test_client_named_sessions_keep_their_ids_without_a_worker_and_others_are_joined(alone: Gateway) -> None:
    with AnthropicTalk(alone.url, "named", extra=WORK) as named, AnthropicTalk(alone.url) as plain:
        named_id, plain_id = named.say("one").session, plain.say("one").session
        alone.kill("worker")
        assert named.say("two").session == named_id
        plain.say("two")
        with AnthropicTalk(alone.url_of("daemon-2"), "named", extra=WORK) as elsewhere:
            elsewhere.history = named.history
            assert elsewhere.say("three").session == named_id
        with AnthropicTalk(alone.url_of("daemon-2")) as elsewhere:
            elsewhere.history = plain.history
            elsewhere.say("three")
        with AnthropicTalk(alone.url, "named", headers={AGENT: "a"}, extra=SUB_WORK) as agent:
            agent.say("search")
        alone.start_worker()
        alone.wait_ready()
        eventually(lambda: sum(shown["turns"] for shown in alone.sessions()) == 7, what="every turn is stored")
    shown = {each["session_id"]: each for each in alone.sessions()}
    assert shown[named_id]["turns"] == 3
    assert shown[plain_id]["turns"] == 3
    assert len(shown) == 3
    assert shown[derived_id(AGENT, SESSION, "named", "a")]["parent_session_id"] == named_id


def test_conversations_sprayed_over_daemons_without_a_worker_are_one_each_when_it_is_back(alone: Gateway) -> None:
    talks = [[AnthropicTalk(alone.url_of(daemon)) for daemon in alone.daemons] for _ in range(6)]
    for number, (first, second) in enumerate(talks):
        second.history = first.history
        first.say(f"conversation {number}, one")
    alone.kill("worker")
    for first, second in talks:
        second.say("two")
        first.say("three")
        second.say("four")
    alone.start_worker()
    alone.wait_ready()
    for first, second in talks:
        first.say("five")
        first.close()
        second.close()
    assert [shown["turns"] for shown in alone.sessions()] == [5] * 6


def test_daemon_restarted_without_a_worker_joins_conversations_with_what_they_were(alone: Gateway) -> None:
    with AnthropicTalk(alone.url) as plain, AnthropicTalk(alone.url) as other:
        session_id, other_id = plain.say("one").session, other.say("one, but another").session
        alone.kill_all()
        for daemon in alone.daemons:
            alone.start_daemon(daemon)
        plain.say("two")
        plain.say("three")
        with AnthropicTalk(alone.url_of("daemon-2")) as elsewhere:
            elsewhere.history = plain.history
            elsewhere.say("four")
            alone.start_worker()
            alone.wait_ready()
            assert elsewhere.say("five").session == session_id
        assert other.say("two, but another").session == other_id
    assert {shown["session_id"]: shown["turns"] for shown in alone.sessions()} == {session_id: 5, other_id: 2}


# -- why -----------------------------------------------------------------------------------------------------------


def test_every_decision_is_recorded_with_its_reason_origin_and_confidence(gateway: Gateway) -> None:
    with AnthropicTalk(gateway.url, "why", extra=WORK) as named:
        named.say("one")
    with AnthropicTalk(gateway.url) as plain:
        plain.say("why one")
        plain.say("why two")
    rows = gateway.rows()
    assert all(row.why.reason and row.why.origin and row.why.confidence for row in rows)
    (row,) = [row for row in rows if row.session_id == derived_id(SESSION, "why")]
    assert (row.why.origin, row.why.confidence) == (f"header {SESSION}", "certain")
    assert rows[-1].why.confidence == "proven"
    shown = gateway.get(f"/api/sessions/{rows[-1].session_id}")
    assert shown is not None
    newest = json.loads(shown[1])["newest_rows"][0]
    assert newest["reason"] == "continues the conversation of this session"
    assert newest["confidence"] == "proven"
