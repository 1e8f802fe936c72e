"""What must not be stored as it came: the kinds of personal data and secrets that are known."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """What can be recognised. Where two overlap, the one that comes first here names them both."""

    PRIVATE_KEY = "private_key"
    JWT = "jwt"
    #: A key or token of a vendor, known by its form.
    API_KEY = "api_key"
    #: What a label calls a password, a secret or a token, and the credentials of an address.
    PASSWORD = "password"  # noqa: S105 - a name, not a secret
    EMAIL = "email"
    IBAN = "iban"
    #: A payment card.
    CARD = "card"
    #: An account at a Japanese bank.
    BANK_ACCOUNT = "bank_account"
    MY_NUMBER = "my_number"
    US_SSN = "us_ssn"
    PHONE = "phone"
    JP_POSTAL_CODE = "jp_postal_code"
    #: A person's name, where a label says that it is one.
    NAME = "name"
