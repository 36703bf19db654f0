-- The store as it first was: who is known, what every request cost, and the sums over both.
-- Times are integer Unix milliseconds (0: never), money is integer nano-dollars.

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- One row per session, from the commit of its identity on.  `epoch` is the fencing token of its owner (the boot id of
-- a daemon); `generation` and `snapshot_position` say which state the snapshot columns hold and up to which ledger row
-- it is folded (generation 0: never flushed); `last_position` counts the settled rows.
CREATE TABLE session_state (
    session_id         TEXT PRIMARY KEY,
    parent_session_id  TEXT,
    forked_from        TEXT,
    client             TEXT NOT NULL DEFAULT '',
    account            TEXT NOT NULL DEFAULT '',
    model              TEXT NOT NULL DEFAULT '',
    message_count      INTEGER NOT NULL DEFAULT 0,
    first_seen_at      INTEGER NOT NULL,
    last_seen_at       INTEGER NOT NULL,
    chain_length       INTEGER NOT NULL DEFAULT 0,
    epoch              INTEGER NOT NULL DEFAULT 0,
    owner              TEXT NOT NULL DEFAULT '',
    last_position      INTEGER NOT NULL DEFAULT 0,
    generation         INTEGER NOT NULL DEFAULT 0,
    snapshot_position  INTEGER NOT NULL DEFAULT 0,
    gradient_checksum  INTEGER NOT NULL DEFAULT 0,
    warmup_checksum    INTEGER NOT NULL DEFAULT 0,
    reason             TEXT NOT NULL DEFAULT ''
) STRICT;

CREATE INDEX session_state_by_last_seen ON session_state (last_seen_at);

-- Ids that were proposed while the worker was away, or lost a race, and the session they turned out to be.
CREATE TABLE session_alias (
    alias      TEXT PRIMARY KEY,
    session_id TEXT NOT NULL REFERENCES session_state (session_id)
) STRICT, WITHOUT ROWID;

-- What names a session.  Several sessions may hold one chain value: then it proves nothing (ambiguous).
CREATE TABLE session_key (
    id         INTEGER PRIMARY KEY,
    kind       TEXT NOT NULL,
    name       TEXT NOT NULL,
    value      TEXT NOT NULL,
    session_id TEXT NOT NULL REFERENCES session_state (session_id),
    event_id   TEXT NOT NULL,
    at         INTEGER NOT NULL,
    UNIQUE (kind, value, name, session_id)
) STRICT;

CREATE INDEX session_key_by_session ON session_key (session_id);

-- A row per request.  Born open (`ended_at` 0) and `interrupted`, settled once.  Token columns are null where the
-- provider never told; `cost_nanousd` is null where no price is known.  `checksum` covers every other column.
CREATE TABLE ledger (
    event_id              TEXT PRIMARY KEY,
    session_id            TEXT NOT NULL REFERENCES session_state (session_id),
    position              INTEGER NOT NULL,
    kind                  TEXT NOT NULL CHECK (kind IN ('turn', 'side', 'warmup')),
    status                TEXT NOT NULL CHECK (status IN ('interrupted', 'error', 'complete')),
    started_at            INTEGER NOT NULL,
    ended_at              INTEGER NOT NULL,
    provider              TEXT NOT NULL,
    protocol              TEXT NOT NULL,
    model                 TEXT NOT NULL,
    client                TEXT NOT NULL,
    account               TEXT NOT NULL,
    boot                  TEXT NOT NULL,
    reason                TEXT NOT NULL,
    http_status           INTEGER NOT NULL,
    input_tokens          INTEGER,
    cache_read_tokens     INTEGER,
    cache_write_5m_tokens INTEGER,
    cache_write_1h_tokens INTEGER,
    output_tokens         INTEGER,
    cost_nanousd          INTEGER,
    price_version         TEXT NOT NULL,
    message_count         INTEGER NOT NULL,
    cap_ceiling           INTEGER NOT NULL,
    layer                 INTEGER NOT NULL,
    user_turn             INTEGER NOT NULL,
    text_only             INTEGER NOT NULL,
    checksum              INTEGER NOT NULL
) STRICT;

CREATE INDEX ledger_by_session ON ledger (session_id, position);

-- Sums over the ledger, moved by the difference in the transaction that moves the row: always equal to it.
CREATE TABLE session_total (
    session_id         TEXT PRIMARY KEY REFERENCES session_state (session_id),
    turns              INTEGER NOT NULL DEFAULT 0,
    interrupted        INTEGER NOT NULL DEFAULT 0,
    input_tokens       INTEGER NOT NULL DEFAULT 0,
    cache_read_tokens  INTEGER NOT NULL DEFAULT 0,
    cache_write_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens      INTEGER NOT NULL DEFAULT 0,
    cost_nanousd       INTEGER NOT NULL DEFAULT 0,
    priced             INTEGER NOT NULL DEFAULT 0,
    unpriced           INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

CREATE TABLE day_total (
    day                TEXT NOT NULL,
    kind               TEXT NOT NULL,
    provider           TEXT NOT NULL,
    model              TEXT NOT NULL,
    client             TEXT NOT NULL,
    account            TEXT NOT NULL,
    turns              INTEGER NOT NULL DEFAULT 0,
    interrupted        INTEGER NOT NULL DEFAULT 0,
    input_tokens       INTEGER NOT NULL DEFAULT 0,
    cache_read_tokens  INTEGER NOT NULL DEFAULT 0,
    cache_write_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens      INTEGER NOT NULL DEFAULT 0,
    cost_nanousd       INTEGER NOT NULL DEFAULT 0,
    priced             INTEGER NOT NULL DEFAULT 0,
    unpriced           INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (day, kind, provider, model, client, account)
) STRICT, WITHOUT ROWID;
