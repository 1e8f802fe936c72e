"""User ids: stored as keyed hashes whose key can be changed, and read from a file or nowhere."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from pipeline.build import build_step_config, read_user_keys
from pipeline.config import PrivacySettings, load_config
from pipeline.core.users import UserKey, hash_user, hash_users
from pipeline.errors import ConfigError

OLD, NEW = UserKey("k1", b"key"), UserKey("k2", b"another key")
SECRET = "canary-of-sixteen-or-more"


def test_users_are_hashed_with_the_key_and_say_which_it_was() -> None:
    hashes = hash_users(["ada", None, "", "太郎", "ada"], OLD).decode()
    assert hashes[0] == "k1:" + hmac.new(b"key", b"ada", hashlib.sha256).hexdigest()[:32]
    assert hashes[0] == hashes[4] != hashes[3]
    assert hashes[1] == hashes[2] == ""
    assert hash_user("ada", NEW) != hashes[0]
    assert hash_user("ada", NEW).startswith("k2:")


def test_without_a_key_users_are_not_kept_at_all() -> None:
    assert hash_users(["ada", None], None).decode() == ["", ""]


@given(st.text(min_size=1), st.text(min_size=1))
def test_users_are_the_same_where_their_ids_are(one: str, other: str) -> None:
    one, other = (each.encode(errors="replace").decode() for each in (one, other))
    assert (hash_user(one, OLD) == hash_user(other, OLD)) == (one == other)


def test_a_key_does_not_show() -> None:
    assert repr(OLD) == "UserKey('k1')"


def test_the_newest_key_hashes_and_the_others_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f'k2 = "{SECRET}-2"\nk10 = "{SECRET}-10"\n')
    privacy = PrivacySettings(user_keys={"k1": SecretStr(f"{SECRET}-1")}, user_keys_file=file)
    assert [key.version for key in read_user_keys(privacy)] == ["k1", "k2", "k10"]
    config = load_config(overrides={"privacy": privacy.model_dump()})
    key = build_step_config(config, 1).user_key
    assert key is not None
    assert (key.version, key.key) == ("k10", f"{SECRET}-10".encode())


def test_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIZASHI_PRIVACY__USER_KEYS__K3", SECRET)
    assert read_user_keys(load_config().privacy) == [UserKey("k3", SECRET.encode())]


@pytest.mark.parametrize(
    "written",
    [f'k1 = "{SECRET[:15]}"', f'one = "{SECRET}"', f"k1 = {SECRET}", f'k1 = ["{SECRET}"]', "\xff"],
)
def test_a_file_of_no_keys_stops_the_start_and_is_not_quoted(tmp_path: Path, written: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_bytes(written.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"privacy\.user_keys_file") as refused:
        read_user_keys(PrivacySettings(user_keys_file=file))
    assert SECRET[:15] not in str(refused.value)


def test_a_version_with_two_keys_and_a_missing_file_stop_the_start(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    with pytest.raises(ConfigError, match="cannot read"):
        read_user_keys(PrivacySettings(user_keys_file=file))
    file.write_text(f'k1 = "{SECRET}"')
    with pytest.raises(ConfigError, match="k1 has two keys"):
        read_user_keys(
            PrivacySettings(user_keys={"k1": SecretStr(SECRET * 2)}, user_keys_file=file)
        )


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.user_keys"):
        load_config(overrides={"privacy": {"user_keys": {"k1": "short"}}})
