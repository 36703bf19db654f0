-- What sessions are removed by that nobody came back to: the names of one, and what its history has of one request.

CREATE INDEX session_alias_by_session ON session_alias (session_id);

DROP INDEX session_history_by_session;
CREATE INDEX session_history_by_session ON session_history (session_id, event_id);
