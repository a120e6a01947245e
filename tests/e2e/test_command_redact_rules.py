"""Every rule of `redact` by name, through the Forward socket of the real command: what it masks, and what is only like it and stays."""

from __future__ import annotations

import base64
import hmac
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from fluent import sender

from emp_pipe.redaction import Pattern
from tests.support.command import run, running, until
from tests.support.command_bench import Bench, rows_in

LETTERS = "aB3dE6gH9jK2mN5pQ8sT1vW4xY7z"
"""What a random token looks like; no key of anybody."""
JWT = ".".join(
    base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({"alg": "HS256"}, {"sub": "1"}, {"s": "ig"})
)
EVERYTHING = "patterns: [key_value, bearer, aws_key, jwt, private_key, url_password, sentry_key, provider_token, email, card_number]"

SECRETS: dict[str, tuple[str, str, str, str]] = {
    # case: rule that counts it, text, what must be gone, what must stay
    "a password by its name": ("key_value", "login password=hunter2 ok", "hunter2", " ok"),
    "a token by its name in JSON": ("key_value", 'got {"apiKey": "k3y-of-mine", "n": 1}', "k3y-of-mine", '"n": 1'),
    "a secret in JSON within JSON": ("key_value", r"got {\"secret\":\"s3cr3t\",\"n\":1}", "s3cr3t", r"\"n\":1"),
    "an option of a command": ("key_value", "run --auth-token tok3n --fast", "tok3n", "--fast"),
    "a parameter of a URL": ("key_value", "GET /x?access_key=k3y&page=2", "k3y", "&page=2"),
    "a cookie's line": ("key_value", "Cookie: a=b; sid=c0ffee\r\nHost: h", "c0ffee", "Host: h"),
    "a secret access key of AWS": ("key_value", f"aws_secret_access_key = {LETTERS}/{LETTERS[:11]}", LETTERS, "aws_secret_access_key"),
    "a Sentry DSN by its name": ("key_value", "SENTRY_DSN=https://k@o1.ingest.sentry.io/7 set", "o1.ingest", " set"),
    "a bearer header": ("bearer", f"sent Bearer {LETTERS} to it", LETTERS, " to it"),
    "a basic header": ("bearer", "sent Basic dXNlcjpwYXNzd29yZA== to it", "dXNlcjpwYXNz", " to it"),
    "a JWT": ("jwt", f"got {JWT} there", JWT[:20], " there"),
    "a key of AWS": ("aws_key", "with AKIAIOSFODNN7EXAMPLE in", "AKIAIOSFODNN7EXAMPLE", " in"),
    "a session key of AWS": ("aws_key", "with ASIAIOSFODNN7EXAMPLE in", "ASIAIOSFODNN7EXAMPLE", " in"),
    "a private key": ("private_key", "-----BEGIN RSA PRIVATE KEY-----\nMIIEsome\n-----END RSA PRIVATE KEY----- end", "MIIEsome", " end"),
    "a password in a URL": ("url_password", "to postgres://hub:dbpass1@db:5432/x now", "dbpass1", "@db:5432/x now"),
    "a password in a URL without a user": ("url_password", "to redis://:dbpass1@r:6379 now", "dbpass1", "@r:6379 now"),
    "a Sentry DSN": ("sentry_key", f"to https://{'0a' * 16}@o1.ingest.sentry.io/7 now", "0a0a", "/7 now"),
    "a token of Sentry": ("sentry_key", f"with sntrys_{LETTERS} in", LETTERS, " in"),
    "a token of Dash0": ("provider_token", f"with auth_{LETTERS} in", LETTERS, " in"),
    "a token of GitHub": ("provider_token", f"with ghp_{LETTERS} in", LETTERS, " in"),
    "a fine-grained token of GitHub": ("provider_token", f"with github_pat_{LETTERS} in", LETTERS, " in"),
    "a token of GitLab": ("provider_token", f"with glpat-{LETTERS} in", LETTERS, " in"),
    "a token of Slack": ("provider_token", f"with xoxb-{LETTERS} in", LETTERS, " in"),
    "a token of npm": ("provider_token", f"with npm_{LETTERS} in", LETTERS, " in"),
    "a token of Hugging Face": ("provider_token", f"with hf_{LETTERS} in", LETTERS, " in"),
    "a token of Replicate": ("provider_token", f"with r8_{LETTERS} in", LETTERS, " in"),
    "a key of Stripe": ("provider_token", f"with sk_live_{LETTERS} in", LETTERS, " in"),
    "a key of Google": ("provider_token", f"with AIza{LETTERS} in", LETTERS, " in"),
    "an address of e-mail": ("email", "mail some.one+x@example.org today", "some.one", " today"),
    "a card's number": ("card_number", "paid by 4111111111111111 today", "4111111111111111", " today"),
    "a card's number in groups": ("card_number", "paid by 5500-0055-5555-5559.", "5500-0055", "paid by"),
}

NEAR_MISSES: dict[str, str] = {
    "the word password": "the password was wrong",
    "a password that is none": "password: null",
    "a count of tokens": "used 512 tokens, token limit 4096",
    "the word bearer": "bearer authentication is on",
    "basic settings": "basic configuration was loaded",
    "a short id like one of AWS": "id AKIA123 and ASIAN",
    "a base64 text that is no JWT": "eyJ is how JSON begins in base64",
    "a public key": "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----",
    "a URL with a port": "GET http://host:8080/a@b",
    "a URL with a user alone": "ssh://git@host/x",
    "a name that begins like a token of Dash0": "auth_request_handler_timeout_seconds is 5",
    "a name that begins like a key": "sk-learn-compatible-estimators-only",
    "a URL with a short user": "https://0a0a0a0a@localhost/7",
    "a sign that is no address": "5 @ 3 and @user and a@b",
    "a number with a wrong check digit": "order 4111111111111112",
    "a time in nanoseconds": "at 1790000000000000000",
    "digits within an id": "job-4111111111111111-x",
    "a job's id": "job-7f3a9c1e-4f1c-9d7e-a1b2-c3d4e5f60718",
    "a trace id": "trace 0123456789abcdef0123456789abcdef",
}


KEYS = {
    "a password": "db.password",
    "a token": "userToken",
    "a key of an API": "X-API-KEY",
    "a header": "http.request.header.authorization",
    "a cookie": "Set-Cookie",
    "a secret key of AWS": "aws_secret_access_key",
    "a key of Sentry": "SENTRY_DSN",
    "a key of Dash0": "dash0_auth_token",
    "a token of GitHub": "GITHUB_TOKEN",
    "a connection string": "connectionString",
}
NEAR_KEYS = {
    "a count of tokens": ("gen_ai.usage.input_tokens", 17),
    "a limit of tokens": ("token_limit", 4096),
    "a type of token": ("token_type", "bearer"),
    "a keyboard": ("keyboard", "qwerty"),
    "whether there is a password": ("password", True),
    "a monkey": ("monkey", "rhesus"),
}


@dataclass
class Arrived:
    by_case: dict[str, dict[str, Any]]
    counts: dict[str, float]


def records() -> list[dict[str, Any]]:
    """One record for each case."""
    out = [{"message": text, "case": f"text: {case}"} for case, (_, text, _, _) in SECRETS.items()]
    out += [{"message": text, "case": f"near: {case}"} for case, text in NEAR_MISSES.items()]
    out += [{"message": f"by key {case}", "case": f"key: {case}", key: "hunter2hunter2"} for case, key in KEYS.items()]
    out += [{"message": f"by no key {case}", "case": f"near key: {case}", key: value} for case, (key, value) in NEAR_KEYS.items()]
    return out


def arrived(directory: Path, settings: str) -> Arrived:
    """Send all cases through the process, and return them as they came to their destination."""
    bench, given = Bench(directory), records()
    bench.write(processors=f"{{redact: {{{settings}}}}}")
    with running(*bench.arguments):
        client = sender.FluentSender("app", host="127.0.0.1", port=bench.port, timeout=20.0)
        for record in given:
            assert client.emit(None, record), client.last_error
        client.close()
        rows = until(lambda: len(found := rows_in(bench.data_dir)) >= len(given) and found, f"{len(given)} rows")
        counts = {rule: bench.metric("emp_pipe_redact_masked_values_total", reason=rule) for rule in ("key", *get_args(Pattern))}
    return Arrived({row["case"]: row for row in rows}, counts)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Arrived:
    return arrived(tmp_path_factory.mktemp("everything"), EVERYTHING)


@pytest.fixture(scope="module")
def defaults(tmp_path_factory: pytest.TempPathFactory) -> Arrived:
    return arrived(tmp_path_factory.mktemp("defaults"), "")


@pytest.mark.parametrize("case", SECRETS)
def test_a_secret_in_a_text_is_masked_and_what_is_around_it_stays(everything: Arrived, case: str) -> None:
    _, _, gone, stays = SECRETS[case]
    message = everything.by_case[f"text: {case}"]["message"]
    assert gone not in message
    assert "[redacted]" in message
    assert stays in message


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_what_is_only_like_a_secret_stays_as_it_was(everything: Arrived, case: str) -> None:
    assert everything.by_case[f"near: {case}"]["message"] == NEAR_MISSES[case]


@pytest.mark.parametrize("case", KEYS)
def test_a_value_is_masked_by_the_name_of_its_key(everything: Arrived, case: str) -> None:
    row = json.dumps(everything.by_case[f"key: {case}"])
    assert "hunter2" not in row
    assert row.count("[redacted]") == 1


@pytest.mark.parametrize("case", NEAR_KEYS)
def test_a_value_stays_whose_key_is_only_like_one(everything: Arrived, case: str) -> None:
    row = everything.by_case[f"near key: {case}"]
    assert "[redacted]" not in json.dumps(row)
    assert row[NEAR_KEYS[case][0]] == NEAR_KEYS[case][1]


def test_what_is_masked_is_counted_by_its_rule(everything: Arrived) -> None:
    expected = Counter(rule for rule, *_ in SECRETS.values())
    assert everything.counts == {"key": len(KEYS), **{rule: expected[rule] for rule in get_args(Pattern)}}


def test_by_default_credentials_are_masked_and_addresses_and_cards_are_not(defaults: Arrived) -> None:
    for case, (rule, text, gone, _) in SECRETS.items():
        message = defaults.by_case[f"text: {case}"]["message"]
        assert (gone in message) == (rule in ("email", "card_number")), f"{text} became {message}"
    assert defaults.counts["email"] == defaults.counts["card_number"] == 0


def test_with_a_key_a_secret_becomes_a_hash_that_is_the_same_for_the_same_secret(tmp_path: Path) -> None:
    got = arrived(tmp_path, "replace_by: hash, hash_key: 0123456789abcdef, patterns: [url_password]")
    cases = ["text: a password in a URL", "text: a password in a URL without a user"]
    hashes = {match[0] for case in cases for match in re.findall(r"(\[hash:[0-9a-f]{16}\])", got.by_case[case]["message"])}
    wanted = hmac.new(b"0123456789abcdef", b"dbpass1", "sha256").hexdigest()[:16]
    assert [got.by_case[case]["message"].count(f"[hash:{wanted}]") for case in cases] == [1, 1], hashes


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("replace_by: hash", "hash_key"),
        ("replace_by: hash, hash_key: short", "16 characters or more"),
        ("replace_by: hash, hash_key: {env: NO_SUCH_VARIABLE_HERE}", "NO_SUCH_VARIABLE_HERE"),
    ],
)
def test_a_hash_without_a_good_key_is_refused_at_the_start(tmp_path: Path, settings: str, said: str) -> None:
    bench = Bench(tmp_path)
    bench.write(processors=f"{{redact: {{{settings}}}}}")
    result = run(*bench.arguments)
    assert result.returncode != 0
    assert said in result.stderr


@pytest.mark.parametrize("role", ["edge", "central"])
def test_both_roles_mask_credentials_unless_told_otherwise(role: str, tmp_path: Path) -> None:
    printed = yaml.safe_load(run(role, "--print-config", "--data-dir", str(tmp_path)).stdout)["processors"]
    assert next(iter(printed)) == "redact"
    (tmp_path / "off.yaml").write_text("processors: {redact: false}")
    off = run(role, "--print-config", "--data-dir", str(tmp_path), "--config", str(tmp_path / "off.yaml"))
    assert "redact" not in yaml.safe_load(off.stdout)["processors"]
