"""Secrets planted in command lines, addresses and patches: none of them is kept, and nothing else is lost."""

import pytest

from hasten.platform import redaction
from hasten.platform.redaction import HIDDEN

SECRET = "hunter2-S3CRET-value"
KEY = "AKIA" + "ABCDEFGHIJKLMNOP"
TOKEN = "hf_" + "a1b2c3d4" * 4


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "digits", "-s", f"hub.token={SECRET}"],
        ["train", "digits", "--password", SECRET],
        ["train", "digits", f"--api-key={SECRET}"],
        ["train", "digits", f"DB_PASS={SECRET}"],
        ["train", "digits", "-s", f"hubToken={SECRET}"],
        ["train", "digits", "-s", f'notify={{"webhook_secret": "{SECRET}"}}'],
        ["train", "digits", "-s", f"notify={{'password': 'two words {SECRET}'}}"],
        ["import", f"https://user:{SECRET}@host/images"],
        ["import", f"https://host/images?X-Amz-Signature={SECRET}&x=1"],
        ["train", "digits", "-H", f"Authorization: Bearer {SECRET}"],
        ["train", "digits", f"aws_secret_access_key: {SECRET}"],
    ],
)
def test_what_is_named_a_secret_is_hidden(arguments):
    shown = redaction.command_line(["hasten", *arguments], {})
    assert SECRET not in shown
    assert HIDDEN in shown
    assert shown.startswith(f"hasten {arguments[0]}")


@pytest.mark.parametrize(
    "value",
    [KEY, TOKEN, "ghp_" + "x1" * 18, "sk-" + "y2" * 12, "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl"],
)
def test_what_looks_like_a_secret_is_hidden_wherever_it_is(value):
    assert value not in redaction.command_line(["hasten", "train", f"name={value}"], {})
    assert value not in redaction.patch(f"+    call('{value}')\n", {})


def test_the_values_of_secret_variables_are_hidden_without_a_name():
    environment = {"MLFLOW_TRACKING_PASSWORD": SECRET, "PWD": "/home/me/work", "LANG": "C.UTF-8"}
    shown = redaction.command_line(
        ["hasten", "train", f"/home/me/work/{SECRET}.yaml", "C.UTF-8"], environment
    )
    assert shown == f"hasten train /home/me/work/{HIDDEN}.yaml C.UTF-8"


def test_what_is_no_secret_stays_and_can_be_pasted_into_a_shell():
    arguments = ["hasten", "train", "digits", "-s", "optimizer.lr=2e-3", "-s", "name=two words", "--json"]
    arguments += ["-s", "model.tokenizer=bpe", "-s", "author=me", "s3://bucket/compass", "-s", "bypass=1"]
    shown = redaction.command_line(arguments, {"SHORT_TOKEN": "two"})
    assert shown == (
        "hasten train digits -s optimizer.lr=2e-3 -s 'name=two words' --json -s model.tokenizer=bpe"
        " -s author=me s3://bucket/compass -s bypass=1"
    )


def test_a_patch_loses_its_secrets_and_keeps_its_code():
    code = (
        "+    tokens = split(text)\n-    num_tokens = 5\n+def login(token, password=None):\n+    x.auth(y)\n"
    )
    secrets = (
        f'+PASSWORD = "{SECRET}"\n+export HUB_TOKEN={SECRET}\n+  secret: {SECRET}\n'
        f"+-----BEGIN RSA PRIVATE KEY-----\n+{SECRET}\n+-----END RSA PRIVATE KEY-----\n"
    )
    shown = redaction.patch(code + secrets, {})
    assert shown.startswith(code)
    assert SECRET not in shown
    assert shown.count(HIDDEN) == 4
