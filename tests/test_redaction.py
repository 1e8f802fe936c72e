"""What must not be stored: every kind is found, what only looks like it is not, in linear time."""

from __future__ import annotations

import time

import phonenumbers
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from phonenumbers import PhoneNumberFormat, PhoneNumberType

from pipeline.core.redaction import EVERY_KIND, Kind, Span, find, redact

JCB = "３５３０ー１１１３ー３３３０ー００００"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln"
#: A text, and what of it must be found.
FOUND = [
    ("write to taro.yamada+x@example.co.jp now", Kind.EMAIL, "taro.yamada+x@example.co.jp"),
    ("メールはtaro＠example．comまで", Kind.EMAIL, "taro＠example．com"),
    ("card 4111 1111 1111 1111, 12/29", Kind.CARD, "4111 1111 1111 1111"),
    ("order 77 378282246310005.", Kind.CARD, "378282246310005"),
    (f"ｶｰﾄﾞ {JCB}", Kind.CARD, JCB),
    ("call 03-1234-5678", Kind.PHONE, "03-1234-5678"),
    ("携帯０９０ー１２３４ー５６７８です", Kind.PHONE, "０９０ー１２３４ー５６７８"),
    ("09012345678", Kind.PHONE, "09012345678"),
    ("my number is +44 (0)20 7946 0018", Kind.PHONE, "+44 (0)20 7946 0018"),
    ("(415) 555-2671", Kind.PHONE, "(415) 555-2671"),
    ("phone: 4155552671", Kind.PHONE, "4155552671"),
    ("〒150-0001", Kind.JP_POSTAL_CODE, "150-0001"),
    ("住所 １５０－０００１ 東京都渋谷区", Kind.JP_POSTAL_CODE, "１５０－０００１"),
    ("マイナンバーは123456789018です", Kind.MY_NUMBER, "123456789018"),
    ("1234 5678 9018", Kind.MY_NUMBER, "1234 5678 9018"),
    ("078-05-1120", Kind.US_SSN, "078-05-1120"),
    ("普通口座 1234567", Kind.BANK_ACCOUNT, "1234567"),
    ("口座名義：ヤマダ　タロウ\n", Kind.NAME, "ヤマダ　タロウ"),
    ("お名前：山田 太郎様", Kind.NAME, "山田 太郎"),
    ("Name on card: John Q. Smith", Kind.NAME, "John Q. Smith"),
    ("pay GB82 WEST 1234 5698 7654 32 today", Kind.IBAN, "GB82 WEST 1234 5698 7654 32"),
    ("DE89370400440532013000", Kind.IBAN, "DE89370400440532013000"),
    ("AKIAIOSFODNN7EXAMPLE", Kind.API_KEY, "AKIAIOSFODNN7EXAMPLE"),
    ("key sk-proj-" + "a1B2" * 8, Kind.API_KEY, "sk-proj-" + "a1B2" * 8),
    ("ghp_" + "a1B2" * 9, Kind.API_KEY, "ghp_" + "a1B2" * 9),
    ("xoxb-1234567890-abcdefghij", Kind.API_KEY, "xoxb-1234567890-abcdefghij"),
    (f"token {JWT}", Kind.JWT, JWT),
    ("postgres://kizashi:hunter2@db/x", Kind.PASSWORD, "kizashi:hunter2"),
    ("Authorization: Bearer abc123def456", Kind.PASSWORD, "abc123def456"),
    ('{"api_key": "q8Zr-long-one"}', Kind.PASSWORD, "q8Zr-long-one"),
    ("パスワード：hunter２です", Kind.PASSWORD, "hunter２"),
    ("DB_PASSWORD=correcthorse", Kind.PASSWORD, "correcthorse"),
]  # fmt: skip
#: What only looks like it.
SPARED = [
    "The password is required, and so is the token.",
    "At 2026-11-21 19:30 it was 1732217431000.",
    "550e8400-e29b-41d4-a716-446655440000",
    "pi is 3.14159265358979 and e 2.718281828",
    "order 4111111111111112",  # a digit off
    "GB82 WEST 1234 5698 7654 33",
    "123456789012",  # twelve digits with a wrong check digit
    "version 1.22.333.4444, build 20261121",
    "192.168.100.200",
    "21.11.2026 12",
    "def f(a, *, b): return a @ b",
    "お名前を教えてください。",
    "commit 98b99e1c0ffee98b99e1c0ffee98b99e1c0ffee0",
    "between 1500 and 3000 requests",
    "",
]


@pytest.mark.parametrize(("text", "kind", "secret"), FOUND)
def test_it_is_found_where_it_stands(text, kind, secret):
    start = text.index(secret)
    assert Span(kind, start, start + len(secret)) in find(text)


@pytest.mark.parametrize(("text", "kind", "secret"), FOUND)
def test_nothing_of_it_is_left(text, kind, secret):
    redacted = redact(text)
    assert secret not in redacted.text
    assert f"[{kind}]" in redacted.text
    assert redacted.counts[kind] == 1


@pytest.mark.parametrize("text", SPARED)
def test_what_only_looks_like_it_is_spared(text):
    assert find(text) == []
    assert redact(text) == (text, {})


def test_only_the_kinds_that_are_asked_for_are_redacted():
    text = "a@example.com or 03-1234-5678"
    assert redact(text, {Kind.PHONE}).text == "a@example.com or [phone]"
    assert redact(text, ()).text == text


def test_what_overlaps_is_one_and_nothing_of_either_is_left():
    redacted = redact("https://me:pass@example.com/ and api_key=sk-" + "a1B2" * 8)
    assert "pass" not in redacted.text.replace("[password]", "")
    assert "a1B2" not in redacted.text


def test_a_private_key_goes_whole_even_when_it_is_cut_off():
    key = "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabcd\n"
    assert redact(f"see {key}-----END RSA PRIVATE KEY----- ok").text == "see [private_key] ok"
    assert redact(f"see {key}").text == "see [private_key]"


@pytest.mark.parametrize("kind", [PhoneNumberType.MOBILE, PhoneNumberType.FIXED_LINE])
def test_the_numbers_of_every_country_are_found(kind):
    """Google's own example of each region's numbers, as it is written abroad."""
    missed = []
    for region in sorted(phonenumbers.SUPPORTED_REGIONS):
        number = phonenumbers.example_number_for_type(region, kind)
        if number is None:
            continue
        for form in (PhoneNumberFormat.INTERNATIONAL, PhoneNumberFormat.E164):
            text = phonenumbers.format_number(number, form)
            if redact(f"reach me at {text} today").text != "reach me at [phone] today":
                missed.append(text)
    assert missed == []


@given(st.text(max_size=300))
@example("İ 03-1234-5678")  # its lower case is longer
@example("\ud800 a@example.com \U0001f600 03-1234-5678")
def test_spans_are_in_order_apart_and_within(text):
    spans = find(text)
    borders = [place for span in spans for place in span[1:]]
    assert borders == sorted(borders)
    assert all(0 <= s.start < s.end <= len(text) and s.kind in EVERY_KIND for s in spans)


@given(st.text(max_size=60), st.sampled_from(FOUND), st.text(max_size=60))
def test_a_secret_is_found_in_any_surroundings(before, found, after):
    """A space apart from anything at all: an emoji before it must not shift what is cut out."""
    text, _, secret = found
    hidden = redact(f"{before}\n{text}\n{after}").text
    assert secret not in hidden


HOSTILE = [
    "4 1 2 3 ", "01 02 03 ", "+1 2", "a@", "a.b@c.", "password", "sk-", "eyJa.", "://a:", "(",
    "-----BEGIN PRIVATE KEY-----", "氏名:", "name: A ", "GB82 ", "１２３－",
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_time_grows_no_faster_than_the_text(piece):
    """Eight times the text takes about eight times as long, whatever is repeated in it."""

    def cost_s(characters: int) -> float:
        text = (piece * (characters // len(piece) + 1))[:characters]
        costs = []
        for _ in range(3):
            begin = time.thread_time()
            find(text)
            costs.append(time.thread_time() - begin)
        return min(costs)

    assert cost_s(32_000) < 24 * cost_s(4_000) + 0.01
