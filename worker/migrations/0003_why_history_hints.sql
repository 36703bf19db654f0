-- Who started whom, what proves a fork, what a session is set up with, why every decision was taken, what headers turned
-- out to mean, and what an operator changed.

ALTER TABLE session_state ADD COLUMN origin TEXT NOT NULL DEFAULT '';
ALTER TABLE session_state ADD COLUMN confidence TEXT NOT NULL DEFAULT '';
-- JSON: hashes of the last turn's system prompt, tools and first message; null before the first.
ALTER TABLE session_state ADD COLUMN shape TEXT;

CREATE INDEX session_state_by_parent ON session_state (parent_session_id) WHERE parent_session_id IS NOT NULL;
CREATE INDEX session_state_by_origin ON session_state (forked_from) WHERE forked_from IS NOT NULL;

ALTER TABLE ledger ADD COLUMN origin TEXT NOT NULL DEFAULT '';
ALTER TABLE ledger ADD COLUMN confidence TEXT NOT NULL DEFAULT '';

-- Every chain value that ended in an answer of a session, for as long as the session is kept: a conversation that goes
-- on from an earlier one is a fork of it.
CREATE TABLE session_history (
    value      TEXT NOT NULL,
    session_id TEXT NOT NULL REFERENCES session_state (session_id),
    event_id   TEXT NOT NULL,
    PRIMARY KEY (value, session_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX session_history_by_session ON session_history (session_id);

INSERT OR IGNORE INTO session_history (value, session_id, event_id)
    SELECT value, session_id, event_id FROM session_key WHERE kind = 'answer';

-- The last value (a keyed hash) of each hint a session came with, and for how many turns in a row.
CREATE TABLE session_hint (
    session_id TEXT NOT NULL REFERENCES session_state (session_id),
    name       TEXT NOT NULL,
    value      TEXT NOT NULL,
    turns      INTEGER NOT NULL,
    PRIMARY KEY (session_id, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX session_hint_by_value ON session_hint (name, value);

-- What a client's header turned out to be: in how many conversations it stayed the same, and whether it ever changed
-- within one or was the same in two.
CREATE TABLE learned_header (
    client        TEXT NOT NULL,
    name          TEXT NOT NULL,
    conversations INTEGER NOT NULL,
    contradicted  INTEGER NOT NULL,
    PRIMARY KEY (client, name)
) STRICT, WITHOUT ROWID;

-- Sessions merged and split by an operator: what was done (rows of `session_id` went to `other_id`; an undo has those of
-- the change it took back), and in `before`, as JSON, the sessions as they were.  `request` is the sender's own number,
-- so that one which is sent twice is done once.
CREATE TABLE session_change (
    id         INTEGER PRIMARY KEY,
    request    TEXT NOT NULL UNIQUE,
    at         INTEGER NOT NULL,
    verb       TEXT NOT NULL CHECK (verb IN ('merge', 'split', 'undo')),
    session_id TEXT NOT NULL,
    other_id   TEXT NOT NULL,
    moved      INTEGER NOT NULL,
    stayed     INTEGER NOT NULL,
    undone_by  INTEGER REFERENCES session_change (id),
    before     TEXT NOT NULL
) STRICT;

CREATE INDEX session_change_by_session ON session_change (session_id);
CREATE INDEX session_change_by_other ON session_change (other_id);
