-- What an operator had forgotten, and what came from another gateway.

-- 0: a session.  Else when (Unix milliseconds) sessions were forgotten whose ledger rows and sums this one keeps: it is
-- blank, nothing names it and no list shows it, so that no total goes down and no row that is sent again counts twice.
ALTER TABLE session_state ADD COLUMN forgotten_at INTEGER NOT NULL DEFAULT 0;

-- Sessions of other gateways that were imported, and what their figures had added to the sums by then: a later import
-- adds the difference.  `foreign_id` is a hash of the id there; `session_id` (which may be an alias by now) is null once
-- the session was forgotten here.
CREATE TABLE session_adopted (
    source             TEXT NOT NULL,
    foreign_id         TEXT NOT NULL,
    session_id         TEXT,
    at                 INTEGER NOT NULL,
    turns              INTEGER NOT NULL,
    interrupted        INTEGER NOT NULL,
    input_tokens       INTEGER NOT NULL,
    cache_read_tokens  INTEGER NOT NULL,
    cache_write_tokens INTEGER NOT NULL,
    output_tokens      INTEGER NOT NULL,
    cost_nanousd       INTEGER NOT NULL,
    priced             INTEGER NOT NULL,
    unpriced           INTEGER NOT NULL,
    PRIMARY KEY (source, foreign_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX session_adopted_by_session ON session_adopted (session_id) WHERE session_id IS NOT NULL;

-- The log of changes, made anew: its verbs are the program's, and no check of the table knows them better.  `epoch`: of
-- what was forgotten, so that whatever begins anew begins above it.
CREATE TABLE session_change_anew (
    id         INTEGER PRIMARY KEY,
    request    TEXT NOT NULL UNIQUE,
    at         INTEGER NOT NULL,
    verb       TEXT NOT NULL,
    session_id TEXT NOT NULL,
    other_id   TEXT NOT NULL,
    moved      INTEGER NOT NULL,
    stayed     INTEGER NOT NULL,
    undone_by  INTEGER REFERENCES session_change_anew (id),
    epoch      INTEGER NOT NULL DEFAULT 0,
    before     TEXT NOT NULL
) STRICT;

INSERT INTO session_change_anew (id, request, at, verb, session_id, other_id, moved, stayed, undone_by, before)
    SELECT id, request, at, verb, session_id, other_id, moved, stayed, undone_by, before FROM session_change;

DROP TABLE session_change;
ALTER TABLE session_change_anew RENAME TO session_change;

CREATE INDEX session_change_by_session ON session_change (session_id);
CREATE INDEX session_change_by_other ON session_change (other_id);
CREATE INDEX session_change_by_undo ON session_change (undone_by) WHERE undone_by IS NOT NULL;
CREATE INDEX session_change_by_epoch ON session_change (epoch) WHERE epoch > 0;
-- Those that can be undone: their images may hold what has to be forgotten.
CREATE INDEX session_change_with_images ON session_change (id) WHERE before <> '[]';
