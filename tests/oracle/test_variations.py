"""What real clients change between two requests of one conversation, and what they leave equal in two: by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.oracle.clients import ClaudeThread, Codex, CodexThread, HeaderNamed, Person
from tests.oracle.plain import Plain, Stateful
from tests.oracle.speech import Dialogue, Part
from tests.oracle.stage import CUT, REFUSED, UNREAD, Stage
from tests.oracle.truth import Headers
from tests.oracle.wire import Style

WIRES = ("messages", "chat", "responses")
OK = (Part("text", "ok"),)
LISTING = "Today's date: 2026-03-01\nFiles:\n- README.md\n- main.py"


@pytest.fixture
def stage() -> Stage:
    return Stage()


def two_styles_stay_one(stage: Stage, wire: str, one: Style, other: Style, *, overnight: bool = False) -> None:
    """A conversation without any id, written in one way and then in another."""
    thread = stage.plain(wire)
    answer = (Part("thinking", "hm"), Part("text", "\n It is done.\n"), Part("call", '{"command": "ls"}', "toolu_1"))
    stage.turn(thread, style=one, parts=answer)
    if overnight:
        stage.next_day()
    thread.dialogue.run_tools(stage.life.words)
    stage.ask(thread, style=other)
    stage.turn(thread, style=one)
    stage.turn(thread, style=other)
    stage.session(thread)


# -- what varies at the beginning of one conversation ----------------------------------------------------------------


def test_cache_control_moved_off_the_first_user_message_stays_one_session(stage: Stage) -> None:
    two_styles_stay_one(stage, "messages", Style(cache_mark="first"), Style(cache_mark="last"))


@pytest.mark.parametrize("wire", WIRES)
def test_list_with_one_text_block_that_became_a_string_stays_one_session(stage: Stage, wire: str) -> None:
    mark = Style(cache_mark="", plain_strings=True)
    two_styles_stay_one(stage, wire, Style(cache_mark="first", plain_strings=False), mark)


def test_reminder_made_anew_on_resume_stays_one_session(stage: Stage) -> None:
    one, other = (
        Style(reminder=f"<system-reminder>\nToday is {day}.\n# Notes\n{notes}</system-reminder>")
        for day, notes in (("2026-03-01", "Use tabs."), ("2026-03-02", "Use spaces."))
    )
    two_styles_stay_one(stage, "messages", one, other, overnight=True)


def test_reminder_that_came_or_went_stays_one_session(stage: Stage) -> None:
    two_styles_stay_one(stage, "messages", Style(), Style(reminder="<system-reminder>Plan mode.</system-reminder>"))


@pytest.mark.parametrize("wire", WIRES)
def test_keys_in_another_order_stay_one_session(stage: Stage, wire: str) -> None:
    two_styles_stay_one(stage, wire, Style(), Style(reverses_keys=True))


@pytest.mark.parametrize("wire", ["messages", "chat"])
def test_system_message_among_the_others_stays_one_session(stage: Stage, wire: str) -> None:
    two_styles_stay_one(stage, wire, Style(), Style(system_among="Available agent types: explorer."))


@pytest.mark.parametrize("wire", WIRES)
def test_answer_whose_white_space_was_trimmed_stays_one_session(stage: Stage, wire: str) -> None:
    two_styles_stay_one(stage, wire, Style(), Style(trims=True))


@pytest.mark.parametrize("wire", ["messages", "responses"])
def test_answer_whose_thinking_was_dropped_stays_one_session(stage: Stage, wire: str) -> None:
    two_styles_stay_one(stage, wire, Style(), Style(drops_thinking=True))


# -- who pays, and with what -----------------------------------------------------------------------------------------


def test_key_that_moved_to_another_header_stays_one_session(stage: Stage) -> None:
    person = Person(stage.life.words)
    old = [True]
    thread = stage.plain("messages", lambda: person.key_headers(is_old_sdk=old[0]))
    stage.turn(thread)
    old[0] = False
    stage.turn(thread)

    stage.session(thread)


@pytest.mark.parametrize("wire", WIRES)
def test_login_token_renewed_for_the_same_subject_stays_one_session(stage: Stage, wire: str) -> None:
    person = Person(stage.life.words)
    thread = stage.plain(wire, person.token_headers)
    for _ in range(3):
        stage.turn(thread)

    stage.session(thread)


def test_new_key_in_a_session_its_client_named_stays_one_session_with_the_new_account(stage: Stage) -> None:
    thread = stage.claude()
    thread.client.has_account = False
    stage.turn(thread)
    before = stage.session(thread).account
    thread.client.person.rotate_key()
    stage.turn(thread)

    assert stage.session(thread).account not in ("", before)


@pytest.mark.parametrize("wire", WIRES)
def test_two_persons_with_equal_texts_are_two_sessions(stage: Stage, wire: str) -> None:
    threads = [stage.plain(wire) for _ in range(2)]
    for text in ("hi", "go on", "and now?"):
        for thread in threads:
            stage.turn(thread, text, parts=OK)

    assert stage.session(threads[0]).session_id != stage.session(threads[1]).session_id


# -- equal openings --------------------------------------------------------------------------------------------------


def same_person(stage: Stage, count: int = 2, wire: str = "messages") -> list[Plain]:
    person = Person(stage.life.words)
    return [stage.plain(wire, lambda: person.key_headers(is_old_sdk=True)) for _ in range(count)]


@pytest.mark.parametrize("opening", ["hi", LISTING])
def test_equal_openings_with_different_answers_are_two_sessions_that_go_on_apart(stage: Stage, opening: str) -> None:
    threads = same_person(stage)
    for number, thread in enumerate(threads):
        stage.turn(thread, opening, parts=(Part("text", f"answer {number}"),))
    for _ in range(2):
        for thread in threads:
            stage.turn(thread, "go on")

    assert stage.session(threads[0]).session_id != stage.session(threads[1]).session_id


@pytest.mark.parametrize("opening", ["hi", LISTING])
def test_equal_openings_with_equal_answers_are_never_one_session(stage: Stage, opening: str) -> None:
    threads = same_person(stage, 4)
    for thread in threads:
        stage.turn(thread, opening, parts=OK)
    for _ in range(2):
        for thread in threads:
            stage.turn(thread)

    assert len({session for thread in threads for session in stage.ids(thread)}) >= len(threads)


def test_hi_twice_is_two_sessions(stage: Stage) -> None:
    first, second = same_person(stage)
    body = Style()
    stage.turn(first, "hi", body, OK)
    stage.turn(second, "hi", body, OK)

    assert stage.ids(first).isdisjoint(stage.ids(second))


def test_hi_twice_at_the_same_moment_is_two_sessions(stage: Stage) -> None:
    threads = same_person(stage)
    for thread in threads:
        thread.dialogue.say("hi")
    exchanges = [stage.begin(thread.request("step", Style())) for thread in threads]
    for exchange in exchanges:
        stage.finish(exchange, parts=OK)

    assert stage.ids(threads[0]).isdisjoint(stage.ids(threads[1]))


@pytest.mark.parametrize("seed", range(6))
def test_equal_opening_still_in_flight_does_not_take_the_other_conversation(seed: int) -> None:
    """Whatever daemon holds which of the two."""
    stage = Stage(seed)
    waiting, going = same_person(stage)
    waiting.dialogue.say("hi")
    exchange = stage.begin(waiting.request("step", Style()))
    stage.turn(going, "hi", parts=OK)
    stage.turn(going, "go on")
    stage.finish(exchange, parts=OK)

    assert stage.ids(waiting).isdisjoint(stage.ids(going))


@pytest.mark.parametrize("seed", range(6))
def test_fork_while_the_origin_goes_on_is_another_session(seed: int) -> None:
    """The origin moved on with one daemon, came back to the other, and is in flight there."""
    stage = Stage(seed)
    (origin,) = same_person(stage, 1)
    for _ in range(3):
        stage.turn(origin)
    conversation = stage.life.truth.conversation("plain", is_named=False, forked_from=origin.conversation)
    fork = Plain(stage.life, conversation, "messages", origin.headers, dialogue=origin.dialogue.copy(4))
    origin.dialogue.say("go on")
    exchange = stage.begin(origin.request("step", Style()))
    stage.turn(fork, "go back")
    stage.finish(exchange)

    assert stage.session(fork).forked_from == stage.session(origin).session_id


@pytest.mark.parametrize("seed", range(6))
def test_two_ways_on_from_one_answer_at_the_same_moment_are_two_sessions(seed: int) -> None:
    stage = Stage(seed)
    (origin,) = same_person(stage, 1)
    stage.turn(origin)
    conversation = stage.life.truth.conversation("plain", is_named=False, forked_from=origin.conversation)
    other = Plain(stage.life, conversation, "messages", origin.headers, dialogue=origin.dialogue.copy())
    for thread, text in ((origin, "go left"), (other, "go right")):
        thread.dialogue.say(text)
    exchanges = [stage.begin(thread.request("step")) for thread in (origin, other)]
    for thread, exchange in zip((origin, other), exchanges, strict=True):
        thread.heard(stage.finish(exchange)[1])
    for thread in (origin, other):
        stage.turn(thread)

    assert stage.ids(other).isdisjoint(stage.ids(origin))


# -- retries ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns_before", [0, 2])
@pytest.mark.parametrize("fate", [CUT, REFUSED])
@pytest.mark.parametrize("wire", WIRES)
def test_same_body_again_after_a_cut_stays_one_session(stage: Stage, wire: str, fate: float, turns_before: int) -> None:
    thread = stage.plain(wire)
    for _ in range(turns_before):
        stage.turn(thread)
    thread.dialogue.say("once more")
    request = thread.request("step")
    stage.send(request, fate)
    _, said = stage.send(request)
    thread.heard(said)
    stage.turn(thread)

    stage.session(thread)


@pytest.mark.parametrize("wire", WIRES)
def test_same_body_again_after_an_answer_nobody_read_stays_one_session(stage: Stage, wire: str) -> None:
    thread = stage.plain(wire)
    stage.turn(thread)
    thread.dialogue.say("once more")
    request = thread.request("step")
    stage.send(request, UNREAD)
    _, said = stage.send(request)
    thread.heard(said)
    stage.turn(thread)

    stage.session(thread)


@pytest.mark.parametrize("wire", WIRES)
def test_body_again_with_keys_in_another_order_stays_one_session(stage: Stage, wire: str) -> None:
    thread = stage.plain(wire)
    stage.turn(thread)
    thread.dialogue.say("once more")
    stage.send(thread.request("step", Style()), CUT)
    stage.ask(thread, Style(reverses_keys=True))

    stage.session(thread)


def test_body_again_without_stream_after_a_cut_in_mid_stream_stays_one_session(stage: Stage) -> None:
    thread = stage.claude()
    for _ in range(2):
        thread.dialogue.say(stage.life.words.sentence())
        request = thread.request("step")
        _, cut = stage.send(request, CUT)
        assert cut.is_begun
        again = thread.again(request, cut)
        assert not again.stream
        _, said = stage.send(again)
        thread.heard(said)

    stage.session(thread)


# -- the next day ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", WIRES)
def test_conversation_without_an_id_is_found_again_the_next_day(stage: Stage, wire: str) -> None:
    thread = stage.plain(wire)
    for _ in range(3):
        stage.turn(thread)
        stage.next_day()

    stage.session(thread)


def test_other_model_stays_one_session(stage: Stage) -> None:
    thread = stage.claude()
    stage.turn(thread)
    thread.model = "claude-opus-4-8"
    stage.turn(thread)

    assert stage.session(thread).model == "claude-opus-4-8"


# -- Claude Code -----------------------------------------------------------------------------------------------------


def test_compaction_and_what_follows_it_stay_one_session(stage: Stage) -> None:
    thread = stage.claude()
    for _ in range(3):
        stage.turn(thread)
    compacting = thread.compact()
    (request,) = next(compacting)
    _, said = stage.send(request)
    with pytest.raises(StopIteration):
        compacting.send([said])
    stage.turn(thread)
    stage.next_day()
    stage.turn(thread)

    assert stage.session(thread).message_count == len(thread.dialogue.entries) - 1


def test_clear_in_the_same_process_is_another_session(stage: Stage) -> None:
    thread = stage.claude()
    stage.turn(thread, "hi", parts=OK)
    cleared = thread.client.new_session()
    stage.turn(cleared, "hi", parts=OK)

    assert stage.session(thread).session_id != stage.session(cleared).session_id
    assert stage.session(cleared).forked_from is None


def test_fork_session_is_another_session_that_knows_its_origin(stage: Stage) -> None:
    thread = stage.claude()
    for _ in range(2):
        stage.turn(thread)
    fork = thread.client.new_session(forked_from=thread.conversation)
    fork.dialogue = thread.dialogue.copy()
    stage.turn(fork)
    stage.turn(thread)

    assert stage.session(fork).forked_from == stage.session(thread).session_id


@pytest.mark.parametrize("is_marked", [True, False])
def test_sub_agents_one_after_the_other_are_children_of_their_own(stage: Stage, is_marked: bool) -> None:
    main = stage.claude()
    stage.turn(main)
    agents = []
    for _ in range(3):
        agents.append(main.agent(is_marked=is_marked))
        for _ in range(2):
            stage.turn(agents[-1])
        stage.turn(main)

    assert_children(stage, main, agents)


@pytest.mark.parametrize("is_marked", [True, False])
def test_sub_agents_at_the_same_time_are_children_of_their_own(stage: Stage, is_marked: bool) -> None:
    main = stage.claude()
    stage.turn(main)
    agents = [main.agent(is_marked=is_marked) for _ in range(3)]
    for _ in range(2):
        for agent in agents:
            agent.dialogue.say(stage.life.words.sentence())
        exchanges = [stage.begin(agent.request("step")) for agent in agents]
        for agent, exchange in zip(agents, exchanges, strict=True):
            agent.heard(stage.finish(exchange)[1])
    stage.turn(main)

    assert_children(stage, main, agents)


def assert_children(stage: Stage, main: ClaudeThread, agents: list[ClaudeThread]) -> None:
    parent = stage.session(main)
    children = [stage.session(agent) for agent in agents]
    assert {child.parent_session_id for child in children} == {parent.session_id}
    assert len({child.session_id for child in children} | {parent.session_id}) == len(agents) + 1
    assert parent.message_count == len(main.dialogue.entries) - 1


BESIDE: dict[str, Callable[[ClaudeThread], object]] = {
    "title": ClaudeThread.title_request,
    "topic": ClaudeThread.topic_request,
    "quota": ClaudeThread.quota_request,
    "memory": ClaudeThread.memory_request,
}


@pytest.mark.parametrize("what", BESIDE)
def test_call_beside_the_conversation_is_booked_as_side_and_leaves_no_trace_in_it(stage: Stage, what: str) -> None:
    main = stage.claude()
    for _ in range(2):
        stage.turn(main)
    before = stage.session(main)
    request = getattr(main, f"{what}_request")()
    sent, _ = stage.send(request)

    after = stage.session(main)
    assert stage.kind(sent) == "side"
    assert (after.message_count, after.model, after.owner) == (before.message_count, before.model, before.owner)


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("what", BESIDE)
def test_call_at_the_same_moment_as_the_first_turn_is_booked_as_side(stage: Stage, what: str, is_first: bool) -> None:
    main = stage.claude()
    main.dialogue.say(stage.life.words.sentence())
    requests = [getattr(main, f"{what}_request")(), main.request("step")]
    exchanges = [stage.begin(request) for request in (requests if is_first else reversed(requests))]
    for exchange in exchanges:
        sent, said = stage.finish(exchange)
        if sent.request.kind == "turn":
            main.heard(said)
    stage.turn(main)

    kinds = {sent.request.variation: stage.kind(sent) for sent in main.conversation.sent}
    assert kinds == {what: "side", "step": "turn"}
    assert stage.session(main).message_count == 3


# -- Codex, OpenCode, Pi ---------------------------------------------------------------------------------------------


def codex(stage: Stage) -> CodexThread:
    client = Codex(stage.life)
    thread_id = stage.life.words.uuid()
    return CodexThread(client, stage.truth.conversation("codex", is_named=True), thread_id, thread_id)


def test_codex_over_resume_and_compaction_stays_one_session(stage: Stage) -> None:
    thread = codex(stage)
    stage.turn(thread)
    stage.next_day()
    stage.turn(thread)
    thread.window += 1
    thread.dialogue.begin_anew("Summary of what was done.")
    stage.ask(thread)

    stage.session(thread)


def test_codex_agent_with_a_thread_of_its_own_is_a_child(stage: Stage) -> None:
    root = codex(stage)
    stage.turn(root)
    agents = []
    for _ in range(2):
        conversation = stage.truth.conversation("codex agent", is_named=True, parent=root.conversation)
        thread_id = stage.life.words.uuid()
        agents.append(CodexThread(root.client, conversation, root.session_id, thread_id, parent=root.thread_id))
    for _ in range(2):
        for agent in agents:
            stage.turn(agent)

    assert {stage.session(agent).parent_session_id for agent in agents} == {stage.session(root).session_id}
    assert stage.session(agents[0]).session_id != stage.session(agents[1]).session_id


def header_named(stage: Stage, headers: Callable[[str], Headers]) -> tuple[HeaderNamed, str]:
    session_id = stage.life.words.uuid()
    conversation = stage.truth.conversation("named", is_named=True)
    person = Person(stage.life.words)

    def all_headers() -> Headers:
        return [*headers(session_id), *person.key_headers(is_old_sdk=False)]

    return HeaderNamed(stage.life, conversation, all_headers), session_id


def test_opencode_agent_with_an_id_of_its_own_is_a_child(stage: Stage) -> None:
    main, main_id = header_named(stage, lambda own: [("x-session-affinity", own), ("x-session-id", own)])
    stage.turn(main)
    agent, _ = header_named(
        stage,
        lambda own: [("x-session-affinity", own), ("x-session-id", own), ("x-parent-session-id", main_id)],
    )
    for _ in range(2):
        stage.turn(agent)
    stage.next_day()
    stage.turn(main)

    assert stage.session(agent).parent_session_id == stage.session(main).session_id


def test_pi_over_responses_is_named_by_its_header(stage: Stage) -> None:
    main, _ = header_named(stage, lambda own: [("session_id", own), ("x-client-request-id", own)])
    stage.turn(main)
    stage.next_day()
    main.dialogue = Dialogue()
    stage.turn(main)

    assert stage.session(main).header_name == "session_id"


def test_pi_over_messages_names_nothing_and_is_found_again(stage: Stage) -> None:
    person = Person(stage.life.words)
    thread = stage.plain("messages", lambda: [("user-agent", "pi/0.50"), *person.key_headers(is_old_sdk=True)])
    stage.turn(thread)
    stage.next_day()
    stage.turn(thread)

    assert stage.session(thread).header_name is None


# -- the provider keeps the history ----------------------------------------------------------------------------------


def stateful(stage: Stage) -> Stateful:
    person = Person(stage.life.words)
    conversation = stage.truth.conversation("previous_response_id", is_named=False)
    return Stateful(stage.life, conversation, lambda: person.key_headers(is_old_sdk=False))


def test_previous_response_id_stays_one_session(stage: Stage) -> None:
    thread = stateful(stage)
    for _ in range(3):
        stage.turn(thread, "go on", parts=OK)
        stage.next_day()

    stage.session(thread)


def test_branch_from_an_older_response_is_another_session_that_knows_its_origin(stage: Stage) -> None:
    thread = stateful(stage)
    for _ in range(3):
        stage.turn(thread, "go on", parts=OK)
    branch = thread.branch()
    assert branch is not None
    for _ in range(2):
        stage.turn(branch, "go back", parts=OK)
    stage.turn(thread, "go on", parts=OK)

    assert stage.session(branch).forked_from == stage.session(thread).session_id


def test_conversation_of_the_provider_stays_one_session(stage: Stage) -> None:
    thread = stateful(stage)
    thread.conversation.is_named = True
    thread.conversation_id = f"conv_{stage.life.words.hex(40)}"
    for _ in range(3):
        stage.turn(thread, "go on", parts=OK)
        stage.next_day()

    stage.session(thread)


# -- headers and fields that may or may not name ---------------------------------------------------------------------


def agents_with(stage: Stage, header: str, values: list[str]) -> list[Plain]:
    person = Person(stage.life.words)

    def headers(value: str) -> Callable[[], Headers]:
        own = [("user-agent", "unknown-agent/1.0"), (header, value)]
        return lambda: [*own, ("x-request-id", stage.life.words.hex(32)), *person.key_headers(is_old_sdk=False)]

    return [stage.plain("chat", headers(value)) for value in values]


def test_header_that_was_learned_names_a_conversation_whose_beginning_was_cut(stage: Stage) -> None:
    threads = agents_with(stage, "x-unknown-session-id", [stage.life.words.uuid() for _ in range(4)])
    for thread in threads:
        for _ in range(4):
            stage.turn(thread)
    for thread in threads:
        del thread.dialogue.entries[:4]
        stage.turn(thread)
        stage.session(thread)


def test_header_of_a_process_is_not_believed_after_many_with_one_conversation_each(stage: Stage) -> None:
    """The first process with two conversations looks like the others until then."""
    values = [stage.life.words.uuid() for _ in range(12)]
    for thread in agents_with(stage, "x-unknown-session", values):
        for _ in range(4):
            stage.turn(thread)
    two = agents_with(stage, "x-unknown-session", [stage.life.words.uuid()] * 2)
    for thread in two:
        for _ in range(4):
            stage.turn(thread)

    assert stage.ids(two[0]).isdisjoint(stage.ids(two[1]))


@pytest.mark.parametrize("header", ["x-unknown-session-id", "x-unknown-machine"])
def test_header_that_all_conversations_share_names_none(stage: Stage, header: str) -> None:
    threads = agents_with(stage, header, ["b1946ac92492d2347c6235b4d2611184"] * 12)
    for _ in range(4):
        for thread in threads:
            stage.turn(thread)

    assert len({stage.session(thread).session_id for thread in threads}) == len(threads)


@pytest.mark.parametrize("conversations", [2, 6])
def test_header_of_a_process_names_none_of_its_conversations(stage: Stage, conversations: int) -> None:
    for _ in range(4):
        threads = agents_with(stage, "x-unknown-session", [stage.life.words.uuid()] * conversations)
        for thread in threads:
            for _ in range(4):
                stage.turn(thread)
        assert len({stage.session(thread).session_id for thread in threads}) == len(threads)


@pytest.mark.parametrize("wire", WIRES)
def test_cache_key_or_user_shared_by_conversations_with_equal_answers_keeps_them_apart(stage: Stage, wire: str) -> None:
    extra = {"metadata": {"user_id": "production"}} if wire == "messages" else {"prompt_cache_key": "app"}
    person = Person(stage.life.words)
    threads = [stage.plain(wire, lambda: person.key_headers(is_old_sdk=False), extra=extra) for _ in range(4)]
    for _ in range(3):
        for thread in threads:
            stage.turn(thread, parts=OK)

    assert len({stage.session(thread).session_id for thread in threads}) == len(threads)


# -- the worker is away ----------------------------------------------------------------------------------------------


def test_session_its_client_named_never_splits_while_the_worker_is_away(stage: Stage) -> None:
    thread = stage.claude()
    stage.turn(thread)
    stage.desk.lose_worker()
    for _ in range(6):
        stage.turn(thread)
    stage.desk.restore_worker()
    stage.turn(thread)

    stage.session(thread)


def test_session_named_before_any_worker_was_heard_stays_one(stage: Stage) -> None:
    stage.desk.lose_worker()
    stage.next_day()
    thread = stage.claude()
    for _ in range(4):
        stage.turn(thread)
    stage.desk.restore_worker()
    for _ in range(4):
        stage.turn(thread)

    assert stage.kind(thread.conversation.sent[-1]) == "turn"
    stage.session(thread)


@pytest.mark.parametrize("wire", WIRES)
def test_conversation_begun_while_the_worker_is_away_is_one_session_when_it_returns(stage: Stage, wire: str) -> None:
    home = stage.desk.daemons[0]
    thread = stage.plain(wire)
    stage.desk.daemons = [home]
    stage.desk.lose_worker()
    for _ in range(3):
        stage.turn(thread)
    stage.desk.restore_worker()
    stage.turn(thread)

    stage.session(thread)


def test_sub_agent_after_the_worker_returned_is_told_from_the_session_begun_without_it(stage: Stage) -> None:
    stage.desk.daemons = stage.desk.daemons[:1]
    stage.desk.lose_worker()
    main = stage.claude()
    stage.turn(main)
    stage.desk.restore_worker()
    agent = main.agent(is_marked=False)
    stage.turn(agent)

    assert stage.session(agent).parent_session_id == stage.session(main).session_id


def test_conversation_whose_agent_was_met_first_without_the_worker_is_not_taken_for_an_agent(stage: Stage) -> None:
    """A daemon that does not know the session can not tell; what it guessed must not split what the client named."""
    main = stage.claude()
    stage.turn(main)
    stage.desk.lose_worker()
    stage.next_day()
    stage.desk.daemons = stage.desk.daemons[:1]
    agent = main.agent(is_marked=False)
    agent.dialogue.say("look around")
    stage.desk.send(agent.request("step")).answer(200, [], [])
    stage.turn(main)
    stage.desk.restore_worker()
    stage.turn(main)

    stage.session(main)
