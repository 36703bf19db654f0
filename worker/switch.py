"""Whether prompt caches are kept warm: what an operator says of it, of all sessions or of one, and what that means.

One rule: nothing is sent to keep a cache warm that was not switched on here; and what was switched off is off from the
commit on, whatever daemons believe.

Theory of operation.  There is one switch for all, off until somebody puts it on, and a setting for each session that
an operator named: *on* sends its pings whatever the switch says and however unlikely it is that they pay, *off* never
does, *auto* goes by the switch again.  A reset declares what failed before to be over: of one session, or of all, of
which then none is set by hand any more.  Daemons hear that there is a change by its number (`protocol.Pong`) and ask
for the whole; the worker itself looks here before it enters a ping, so that one which has not heard yet does no harm.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from worker.correction import Refused, Told, session_at
from worker.protocol import HAND_SET_MAX, HandSetting, Switch, Warm, WarmTo
from worker.stored import Amendment, Session, Tables, WarmVerb


def warm(tables: Tables, act: Warm, entry: Amendment) -> Told:
    """Do what the operator says; the entry's `moved` tells how many sessions are not set by hand any more."""
    entry = _warm_one(tables, act, entry) if act.session_id else _warm_all(tables, act.to, entry)
    # Its number is how daemons hear of it, whatever was changed.
    tables.put_switch(replace(tables.switch(), change=entry.number))
    tables.put_amendment(entry)
    return entry, []


def is_on(switch: Switch, session: Session) -> bool:
    """Pings of the session may be sent."""
    return switch.is_on if session.warm in ("", "auto") else session.warm == "on"


def _warm_one(tables: Tables, act: Warm, entry: Amendment) -> Amendment:
    session = session_at(tables, act.session_id)
    if not session.warm and len(tables.hand_set(HAND_SET_MAX)) == HAND_SET_MAX:
        raise Refused(f"{HAND_SET_MAX} sessions are set by hand already; `perdure warm --reset` begins anew")
    setting: HandSetting = "auto" if act.to == "reset" else act.to
    reset_at = entry.at if act.to == "reset" else session.warm_reset_at
    tables.put_session(replace(session, warm=setting, warm_reset_at=reset_at))
    return replace(entry, verb=_VERBS[act.to], session_id=session.session_id)


def _warm_all(tables: Tables, to: WarmTo, entry: Amendment) -> Amendment:
    switch = tables.switch()
    if to != "reset":
        tables.put_switch(replace(switch, is_on=to == "on"))
        return replace(entry, verb=_VERBS[to])
    found = tables.hand_set(HAND_SET_MAX)
    for session in filter(None, (tables.session(each.session_id) for each in found)):
        tables.put_session(replace(session, warm=""))
    tables.put_switch(replace(switch, reset_at=entry.at))
    return replace(entry, verb=_VERBS[to], moved=sum(each.setting in ("on", "off") for each in found))


_VERBS: Final[dict[WarmTo, WarmVerb]] = {"on": "warm on", "off": "warm off", "reset": "warm reset"}
