"""Credentials and what would act on a terminal never reach a text for people; all other text stays as it is."""

import contextlib
import io

import pyarrow as pa
import pytest

from pipeline.ledger.ledger import without_addresses
from pipeline.records.clips import CLIP_SCHEMA
from pipeline.runtime.console import log_status, log_traceback, print_line
from pipeline.storage.redaction import printable, redacted, redacted_values, without_query, without_secrets

SIGNED = "https://store/clips/a.mp4?X-Amz-Credential=AKIAABCDEFGHIJKLMNOP&X-Amz-Signature="


SECRET_URLS = [
    f"{SIGNED}hunter2",
    "https://hunter2@host/a",
    "HTTPS://me:hunter2@host/a",
    "Http://host/a.mp4?t=1&x=hunter2",
    "http://host?x=a@hunter2",
    "http://host/a#access_token=hunter2",
    "https://host/a;jsessionid=hunter2?x=1",
    "ftp://me:hun@hunter2@host/b",
    "sftp://me:hun/hunter2@host/b",
    "ftp://me:p?hunter2@host/b",
    "s3://AKIAKEY:hunter2@bucket/k",
    "s3://key:hun/hunter2@bucket/k",
    "S3A://key:12/hunter2@bucket/k",
    "s3://bucket/k?versionId=hunter2",
    "abfs://box@account.dfs.core.windows.net/x?sv=1&sig=hunter2",
    "abfs://box:hunter2@account/x",
    "gs://bucket/k?X-Goog-Signature=hunter2",
    "hf://hunter2@datasets/x",
    "simplecache::s3://key:hunter2@bucket/k",
    "git+https://hunter2@host/x",
    "archive://?file=https%3A%2F%2Fhost%2Fa.zip%3FX-Amz-Signature%3Dhunter2&bytes=9&zip=1%2C2",
    "archive://?file=abfs%3A%2F%2Fbox%40account%2Fa.zip%3Fsig%3Dhunter2&bytes=9&zip=1%2C2",
    "archive://?file=s3%3A%2F%2Fkey%3Ahunter2%40bucket%2Fa.zip&bytes=9&zip=1%2C2",
    "abfs://box@account.dfs.core.windows.net/x#hunter2",
    "wasbs://box@account.blob.core.windows.net/x?hunter2",
    "gs://bucket/a.mp4#hunter2",
    "https://host/a%3Fsig=hunter2",
    "https://host/a.mp4%253Fsig%253Dhunter2",
    "s3://bucket/a.mp4%3fX-Amz-Signature%3dhunter2",
    "https://me%3Ahunter2%40host/a",
    "https://me:hunter2%2540host/a",
    "ftp://host/a;type=i;pass=hunter2",
    "archive://?file=https%3A%2F%2Fhost%2Fa.zip%23hunter2&bytes=9&zip=1%2C2",
    "archive://?file=https%3A%2F%2Fhost%2Fa.zip%3Bjsessionid%3Dhunter2&bytes=9&zip=1%2C2",
]


SECRET_TEXTS = [
    *(f"'{url}' cannot be read: 403" for url in SECRET_URLS),
    "sftp://me:hunter2@host/a and ftp://me:hun@hunter2@host/b",
    "{'aws_secret_access_key': 'hunter2', 'aws_session_token': \"hunter2\"}",
    "GET /clips/a.mp4?sig=hunter2&token=hunter2 failed",
    "AWS_SECRET_ACCESS_KEY=hunter2 password=hunter2",
    'Invalid bucket name "AKIAKEY:hun/hunter2@bucket": Bucket name must match',
    "Authorization: Bearer hunter2",
    "{'Authorization': 'Basic hunter2=='}",
    "authorization=AWS4-HMAC-SHA256 Credential=x, Signature=hunter2",
    "Cookie: a=1; session=hunter2",
    "AccountName=x;AccountKey=hunter2==;EndpointSuffix=core",
    "SharedAccessSignature=hunter2",
    "password: hunter2",
    '"db_password": "hunter2"',
    "X-Api-Key: hunter2",
    "hf_hunter2abcdef",
    *(f"{start}hunter2abcdefgh" for start in ("npm_", "pypi-", "dckr_pat_", "shpat_", "sk_live_", "rk_test_", "glrt-")),
    "SG.hunter2abcd.hunter2abcd",
    "ended: wget --password hunter2 --header x",
    "api key: hunter2",
    "pass=hunter2",
    "http://host/with a blank/a.mp4?t=hunter2",
    "ghp_hunter2abcdef and github_pat_hunter2abc",
    "eyJhbGciOi.hunter2abc.hunter2abc",
    "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN PGP PRIVATE KEY BLOCK-----\nhunter2",
    *(f"{kind}key=hunter2" for kind in ("ssh_", "encryption-", "signing_", "hmac", "ServiceMaster")),
    "ended: curl -u me:hunter2 https://host",
    "curl --user 'me:hunter2' host",
    "https%3A%2F%2Fme%3Ahunter2%40host%2Fa cut",
    "s3%3a%2f%2fkey%3ahunter2%40bucket",
    "https%253A%252F%252Fme%253Ahunter2%2540host%252Fa cut",
    "https%253A%252F%252Fhost%252Fa.mp4%253Fsig%253Dhunter2 cut",
    "file=https%3A%2F%2Fhost%2Fa%23access_token%3Dhunter2 cut",
    "file=https%3A%2F%2Fhost%2Fa%3Bjsessionid%3Dhunter2 cut",
    "GET /clips/a.mp4%3FPolicy%3Dhunter2 failed",
    "GET /clips/a.mp4?Policy=hunter2&x=hunter2 failed",
    "https:/me:hunter2@host/a",
    "sig%3Dhunter2 and token%253Dhunter2",
    "authorization%3A%20Bearer%20hunter2",
    "key=hunter2",
    "token hunter2abc9",
    "the api key is hunter2",
    "Authorization Bearer hunter2",
    "Bearer: hunter2",
    'Proxy-Authorization: Digest username="me", response="hunter2"',
    "password = 'a blank and hunter2'",
    "{'token': b'hunter2'}",
    "MYSQL_PWD=hunter2 connection_string=hunter2 sid=hunter2 SAS=hunter2",
    f"{'a' * 300}_token=hunter2",
]


@pytest.mark.parametrize("text", SECRET_TEXTS)
def test_no_text_for_people_holds_a_secret(text):
    assert "hunter2" not in redacted(text)
    assert redacted(redacted(text)) == redacted(text)


@pytest.mark.parametrize("url", SECRET_URLS)
def test_no_address_that_is_kept_holds_a_secret(url):
    assert "hunter2" not in without_secrets(url)
    assert without_secrets(without_secrets(url)) == without_secrets(url)
    row = {
        **dict.fromkeys(CLIP_SCHEMA.names),
        "clip_id": "a",
        "path": "a",
        "url": url,
        "size_bytes": 1,
        "content_id": "",
    }
    kept = without_addresses(pa.Table.from_pylist([row], schema=CLIP_SCHEMA))
    assert kept["url"].to_pylist() == [without_secrets(url)]


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a@b/c.mp4",
        "s3://bucket/what?.mp4",
        "s3://bucket/clip #1.mp4",
        "abfs://box@account/x",
        "http://host:8080/a@b.mp4",
        "file:///data/a%20b?c=d.mp4",
        "archive://?file=s3%3A%2F%2Fbucket%2Fa.zip&bytes=9&zip=1%2C2",
        "clip 7: pts=4.2 is past its end",
        "hf_training.mp4 is encrypted; pack it without a password",
        "s3://bucket/take #2",
        "s3://bucket/clip#1.mp4",
        "s3://bucket/day#2/clip.mp4",
        "NoSuchKey: Key=clips/a.mp4",
        "sorted(rows, key=lambda row: row.seconds)",
        "a token of 12 letters; the password is wrong",
        "/data/a?c=d.mp4",
        "a basic example: http://127.0.0.1:5000 cannot be read; check the address",
    ],
)
def test_text_without_secrets_stays_as_it_is(text):
    assert redacted(text) == text
    assert without_secrets(text) == text


@pytest.mark.parametrize(
    "part", ["-", "a", "-token", "secret", "a%3A%2F%2F", ":", "key=", "?a", "@a", "archive://?file="]
)
def test_a_long_name_is_looked_through_in_a_moment(part):
    num = 2**15 // len(part)  # With a pattern that begins anew at each letter, 10 minutes.
    for text in (part * num, f"https://host/{part * num}", f"{part * num} password=hunter2"):
        assert "hunter2" not in redacted(text)
        assert without_secrets(text)


def test_a_config_is_written_without_secrets_however_deep_they_lie():
    values = {"input": f"{SIGNED}hunter2", "compare": ("https://hunter2@host/a",), "limits": {"token": "token=hunter2"}}
    assert "hunter2" not in str(redacted_values(values))
    assert redacted_values({"epochs": 3, "names": ("a",)}) == {"epochs": 3, "names": ("a",)}


def test_a_query_is_cut_off_where_it_is_one():
    assert without_query("http://host/a.mp4;v=1?x#y") == "http://host/a.mp4"
    assert without_query("bucket/a.mp4?sig=x&y=z") == "bucket/a.mp4"
    assert without_query("bucket/what?.mp4") == "bucket/what?.mp4"


NASTY = "clip\x1b]0;owned\x07\x1b[2J\u202egnp.\r\n\x9bfake: all is well"


@pytest.mark.parametrize("show", [log_status, print_line])
def test_a_line_that_is_printed_is_one_line_and_commands_no_terminal(show):
    for stream in (contextlib.redirect_stderr, contextlib.redirect_stdout):
        with stream(io.StringIO()) as out:
            show(f"{NASTY} token=hunter2")
        if text := out.getvalue():
            assert text.isprintable() is False  # its end of line
            assert text.removesuffix("\n") == printable(text.removesuffix("\n"))
            assert "hunter2" not in text
            return
    pytest.fail("nothing was printed")


def test_a_traceback_keeps_its_lines_and_nothing_else_that_acts():
    with contextlib.redirect_stderr(io.StringIO()) as out:
        log_traceback("Traceback:\n  File x\nValueError: \x1b[2J https://me:hunter2@host/a")
    lines = out.getvalue().splitlines()
    assert lines == ["Traceback:", "  File x", "ValueError:  [2J https://…@host/a"]
