-- The twelve columns that let a person see with sqlite3 what is known about a session: what named it (three), how its
-- prompt cache is warmed (two), how its context is steered (seven).  Times are Unix milliseconds (0: never), intervals
-- are seconds (−1: none yet).  None is NOT NULL: a damaged value must be readable, to be judged by the daemon.

ALTER TABLE session_state ADD COLUMN fingerprint TEXT;
ALTER TABLE session_state ADD COLUMN header_session_id TEXT;
ALTER TABLE session_state ADD COLUMN header_name TEXT;

ALTER TABLE session_state ADD COLUMN resolved_conversation_ttl TEXT DEFAULT '5m';
ALTER TABLE session_state ADD COLUMN warmup_state TEXT;

ALTER TABLE session_state ADD COLUMN dynamic_context_cap INTEGER DEFAULT 0;
ALTER TABLE session_state ADD COLUMN bust_rate_ema REAL DEFAULT -1;
ALTER TABLE session_state ADD COLUMN inter_bust_interval_ema REAL DEFAULT -1;
ALTER TABLE session_state ADD COLUMN last_layer INTEGER DEFAULT 0;
ALTER TABLE session_state ADD COLUMN last_known_input INTEGER DEFAULT 0;
ALTER TABLE session_state ADD COLUMN last_turn_at INTEGER DEFAULT 0;
ALTER TABLE session_state ADD COLUMN last_bust_at INTEGER DEFAULT 0;
