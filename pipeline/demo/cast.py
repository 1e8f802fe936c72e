"""Who is in the simulated company, and what is normal there."""

from __future__ import annotations

from msgspec import Struct

#: Of the answers so many get a thumb, …
RATED_SHARE = 0.04
#: … after about so many seconds, log-normal, …
RATING_S, RATING_SIGMA = 15.0, 0.8
#: … and of these so many point down: for an answer that declines, one cut off, any other.
DISLIKED_REFUSALS, DISLIKED_TRUNCATIONS, DISLIKED = 0.85, 0.5, 0.06


class Provider(Struct, frozen=True):
    name: str
    #: Its words for an answer that ended, was cut off, or was withheld.
    stop: str
    length: str
    withheld: str
    #: How it tells a refusal: shares of a flag of its own and of the finish reason. The rest
    #: are only in the words of the answer.
    flag_share: float = 0.0
    withheld_share: float = 0.0
    id_prefix: str = ""


class Model(Struct, frozen=True):
    provider: Provider
    name: str
    snapshot: str
    #: Medians of log-normal times.
    first_chunk_s: float
    token_s: float
    #: Share of the output tokens that are spent on reasoning.
    reasoning_share: float = 0.0


class Route(Struct, frozen=True):
    name: str
    #: Share of the conversations; the code trace has a route to itself.
    share: float
    prompt_name: str
    prompt_version: str
    #: Request model → share.
    models: dict[str, float]
    cache_share: float
    temperature: float
    stream: bool = True


class Tenant(Struct, frozen=True):
    name: str
    share: float
    language: str
    home: str


OPENAI = Provider("openai", "stop", "length", "content_filter", 0.4, 0.25, "chatcmpl-")
ANTHROPIC = Provider("anthropic", "end_turn", "max_tokens", "refusal", 0.0, 0.5, "msg_")
VLLM = Provider("vllm", "stop", "length", "stop", id_prefix="cmpl-")

MODELS = (
    Model(OPENAI, "gpt-5.4", "gpt-5.4-2026-03-05", 0.65, 0.014, 0.2),
    Model(OPENAI, "gpt-5.4-mini", "gpt-5.4-mini-2026-03-17", 0.38, 0.008, 0.1),
    Model(ANTHROPIC, "claude-sonnet-4-5", "claude-sonnet-4-5-20250929", 0.80, 0.016),
    Model(ANTHROPIC, "claude-haiku-4-5", "claude-haiku-4-5-20251001", 0.42, 0.009),
    Model(VLLM, "llama-3.3-70b-instruct", "llama-3.3-70b-instruct", 0.30, 0.020),
    Model(VLLM, "qwen3-32b", "qwen3-32b", 0.22, 0.013),
)
ROUTES = (
    Route(
        "support",
        0.34,
        "support-answer",
        "v6",
        {"gpt-5.4-mini": 0.37, "claude-haiku-4-5": 0.38, "qwen3-32b": 0.25},
        cache_share=0.12,
        temperature=0.3,
    ),
    Route(
        "search",
        0.26,
        "search-rag",
        "v12",
        {"gpt-5.4-mini": 0.36, "claude-haiku-4-5": 0.36, "llama-3.3-70b-instruct": 0.28},
        cache_share=0.09,
        temperature=0.0,
    ),
    Route(
        "summarise",
        0.20,
        "summarise",
        "v4",
        {"gpt-5.4": 0.36, "claude-sonnet-4-5": 0.42, "llama-3.3-70b-instruct": 0.22},
        cache_share=0.03,
        temperature=0.2,
    ),
    Route(
        "translate",
        0.20,
        "translate",
        "v9",
        {"gpt-5.4-mini": 0.38, "claude-haiku-4-5": 0.36, "qwen3-32b": 0.26},
        cache_share=0.06,
        temperature=0.0,
        stream=False,
    ),
    Route(
        "code-review",
        0.0,
        "code-review",
        "v3",
        {"gpt-5.4": 0.40, "claude-sonnet-4-5": 0.45, "qwen3-32b": 0.15},
        cache_share=0.02,
        temperature=0.1,
    ),
)
#: Even the smallest has its few hundred requests before anything goes wrong, so that none of
#: its monitors learns from an incident.
TENANTS = (
    Tenant("brightcart", 0.26, "en", "eu-west"),
    Tenant("hikari-denki", 0.19, "ja", "ap-northeast"),
    Tenant("meridian-bank", 0.15, "en", "us-east"),
    Tenant("polar-freight", 0.12, "en", "eu-west"),
    Tenant("aozora-travel", 0.09, "ja", "ap-northeast"),
    Tenant("fernwood-health", 0.07, "en", "us-east"),
    Tenant("quill-studio", 0.06, "en", "us-east"),
    Tenant("tsubame-books", 0.06, "ja", "ap-northeast"),
)
REGIONS = ("us-east", "eu-west", "ap-northeast")
#: The rest of a tenant's traffic is spread over the other regions.
HOME_SHARE = 0.85

# --- What is normal -----------------------------------------------------------------

#: An attempt fails. A quarter of the failures are rescued, which leaves errors at 0.5 %.
FAILURE_RATE = 0.0067
RESCUED_SHARE = 0.25
REFUSAL_RATE = 0.010
TRUNCATION_RATE = 0.020
FIRST_CHUNK_SIGMA = 0.35
TOKEN_SIGMA = 0.22
INPUT_TOKENS_PER_S = 30_000
#: A refusal is short, however long an answer would have been.
REFUSAL_TOKENS_MAX = 40
MAX_TOKENS = 4_096
CACHED_PROMPT_SHARE = 0.4
#: Providers cache prompts from so many tokens on, in blocks.
CACHED_PROMPT_MIN = 1_024
CACHED_PROMPT_BLOCK = 128
USERS_PER_TENANT = 400

#: `error.type` → share of the failures, and the median time until it is known.
FAILURES = (("rate_limit", 0.35, 0.12), ("server_error", 0.40, 0.9), ("timeout", 0.25, 30.0))
#: In an outage a provider does not answer "slow down".
OUTAGE_FAILURES = (("rate_limit", 0.0, 0.12), ("server_error", 0.75, 0.9), ("timeout", 0.25, 30.0))
