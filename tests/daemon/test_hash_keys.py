"""With what a daemon hashes, before and after it or its neighbour has heard the worker."""

from __future__ import annotations

import logging
from pathlib import Path

from daemon.chain import HashKeys
from daemon.index import KeyIndex
from daemon.keyfile import KEY_BYTES, KeyFile
from daemon.sessions import Sessions
from worker.protocol import Welcome

OURS, THEIRS, STORES = (bytes([number]) * KEY_BYTES for number in range(3))


def daemon_of(host: Path | None, early_key: bytes) -> Sessions:
    log = logging.Logger("test")
    key_file = KeyFile(host / "hash.key", log) if host else None
    return Sessions(index=KeyIndex(), early_key=early_key, log=log, key_file=key_file)


def greet(sessions: Sessions) -> None:
    welcome = Welcome(boot="w", incarnation="one", hash_key=STORES.hex(), version="0", schema=1)
    sessions.welcomed(welcome, new_store=False)


def test_daemons_of_a_host_that_heard_no_worker_hash_with_one_early_key(tmp_path: Path) -> None:
    ours, theirs = daemon_of(tmp_path, OURS), daemon_of(tmp_path, THEIRS)
    assert ours.hash_keys == theirs.hash_keys == HashKeys(store=None, early=OURS, early_was_used=True)


def test_daemon_that_heard_no_worker_takes_the_key_that_its_neighbour_was_told(tmp_path: Path) -> None:
    ours, theirs = daemon_of(tmp_path, OURS), daemon_of(tmp_path, THEIRS)
    greet(theirs)
    assert ours.hash_keys.store == STORES
    assert not ours.hash_keys.early_was_used


def test_early_key_that_a_neighbour_used_is_looked_up_under_by_whoever_is_greeted_or_starts_later(
    tmp_path: Path,
) -> None:
    theirs = daemon_of(tmp_path, THEIRS)
    ours = daemon_of(tmp_path, OURS)
    assert theirs.hash_keys.early_was_used
    greet(ours)
    later = daemon_of(tmp_path, bytes(KEY_BYTES))
    assert ours.hash_keys == later.hash_keys == HashKeys(store=STORES, early=THEIRS, early_was_used=True)


def test_early_key_is_not_shared_by_a_daemon_that_is_greeted_before_it_answers(tmp_path: Path) -> None:
    ours = daemon_of(tmp_path, OURS)
    greet(ours)
    assert ours.hash_keys == HashKeys(store=STORES, early=OURS)
    assert [path.name for path in tmp_path.iterdir()] == ["hash.key"]


def test_early_key_of_a_daemon_without_a_place_to_share_it_is_its_own() -> None:
    ours = daemon_of(None, OURS)
    assert ours.hash_keys == HashKeys(store=None, early=OURS, early_was_used=True)
    greet(ours)
    assert ours.hash_keys == HashKeys(store=STORES, early=OURS, early_was_used=True)
