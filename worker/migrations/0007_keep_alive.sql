-- Keeping prompt caches warm: one ping per session and window, and what an operator said of it.

-- Of a warm-up: when the request began that last touched the cache.  0: of no matter (any more), as once the row was moved
-- to another session.
ALTER TABLE ledger ADD COLUMN window_started_at INTEGER NOT NULL DEFAULT 0;
CREATE UNIQUE INDEX ledger_one_ping ON ledger (session_id, window_started_at) WHERE window_started_at > 0;

-- '': nothing was said of the session; 'auto': that what was said before counts no more.  What failed before
-- `warm_reset_at` (Unix milliseconds) counts no more either.  The switch of all is in `meta`, as JSON.
ALTER TABLE session_state ADD COLUMN warm TEXT NOT NULL DEFAULT '' CHECK (warm IN ('', 'on', 'off', 'auto'));
ALTER TABLE session_state ADD COLUMN warm_reset_at INTEGER NOT NULL DEFAULT 0;
CREATE INDEX session_state_set_by_hand ON session_state (session_id) WHERE warm <> '';
