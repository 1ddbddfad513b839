"""A bucket that is away, full, or not ours, and signatures as AWS's own documentation has them."""

import http.server
import threading
from datetime import UTC, datetime

import pytest

from insitu.core.errors import BlobError, DiskFull, StoreError
from insitu.store.blobs import bucket as buckets
from insitu.store.blobs.bucket import NOTHING, Bucket, Keys, signed
from insitu.store.blobs.s3 import S3Blobs
from insitu.store.opened import open_blobs

EXAMPLE = Keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
HOST, AT = "examplebucket.s3.amazonaws.com", datetime(2013, 5, 24, tzinfo=UTC)
KEYS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "of-insitu"}


@pytest.mark.parametrize(
    ("path", "query", "headers", "signature"),
    [
        (
            "/test.txt",
            {},
            {"range": "bytes=0-9"},
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (
            "/",
            {"prefix": "J", "max-keys": "2"},
            {},
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
        ("/", {"lifecycle": ""}, {}, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
    ],
)
def test_signatures_are_those_of_the_documentation(path, query, headers, signature):
    """https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html"""
    found = signed("GET", HOST, path, query, headers, NOTHING, EXAMPLE, "us-east-1", AT)
    assert found["authorization"].endswith(f"Signature={signature}")
    assert "wJalr" not in repr(EXAMPLE)


def test_a_session_token_is_signed_too():
    keys = Keys(EXAMPLE.access, EXAMPLE.secret, "token")
    found = signed("GET", HOST, "/", {}, {}, NOTHING, keys, "us-east-1", AT)
    assert found["x-amz-security-token"] == "token"
    assert "SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token" in found["authorization"]


# ------------------------------------------------------------ a real server


def test_blobs_open_by_their_url_and_leave_other_objects_alone(bucket, tmp_path):
    blobs = open_blobs(bucket, spool=tmp_path / "spool")
    other = open_blobs(bucket.replace("some/prefix", "some"), spool=tmp_path / "other")
    mine, theirs = blobs.put(b"mine"), other.put(b"theirs")
    blobs.bucket.ask("PUT", "notes.txt", body=b"hello", payload=buckets.hashlib.sha256(b"hello").hexdigest())
    assert blobs.sweep([], 0.0) == 1
    assert [blobs.length(mine), other.read(theirs)] == [None, b"theirs"]
    assert blobs.bucket.ask("GET", "notes.txt").body == b"hello"


def test_more_blobs_than_a_page_are_swept(bucket, tmp_path):
    blobs = S3Blobs(bucket, tmp_path)
    real, digests = blobs.bucket.ask, [blobs.put(bytes([i])) for i in range(25)]

    def small_pages(method, name, *, query=None, **more):
        return real(method, name, query={**query, "max-keys": "10"} if query else query, **more)

    blobs.bucket.ask = small_pages
    assert blobs.sweep(digests[:3], 0.0) == 22
    assert [blobs.length(one) is not None for one in digests] == [True] * 3 + [False] * 22


def test_a_damaged_object_is_noticed(bucket, tmp_path):
    blobs = S3Blobs(bucket, tmp_path)
    digest = blobs.put(b"right")
    blobs.bucket.ask("PUT", digest, body=b"wrong", payload=buckets.hashlib.sha256(b"wrong").hexdigest())
    with pytest.raises(BlobError, match="is damaged"):
        blobs.read(digest)


def test_a_bucket_that_is_not_there_is_said(bucket, tmp_path):
    with pytest.raises(StoreError, match=r"answers 404 .*NoSuchBucket.*: check the bucket's name"):
        S3Blobs(bucket.replace("bucket-", "bracket-"), tmp_path)


# ------------------------------------------------------------ a server that does not do what it should


@pytest.fixture
def sulking(monkeypatch):
    """A server that answers what ``answers`` says, and then 200; ``seen`` are the requests."""
    answers, seen = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do(self):
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            seen.append((self.command, self.path, body))
            status = answers.pop(0) if answers else 200
            if status is None:
                self.connection.close()
                return
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        do_GET = do_PUT = do_HEAD = do

        def log_message(self, *_):
            """Says nothing."""

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_):
            """A connection that was closed on purpose."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    yield f"s3://name?endpoint=http://127.0.0.1:{server.server_port}", answers, seen
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_may_pass_is_asked_again(sulking, tmp_path):
    url, answers, seen = sulking
    blobs = S3Blobs(url, tmp_path)
    del seen[:]
    answers += [503, None, 500]
    digest = blobs.put(b"abc")
    assert seen == [("PUT", f"/name/{digest}", b"abc")] * 4


def test_a_part_whose_upload_fails_is_kept_and_goes_up_later(sulking, tmp_path, monkeypatch):
    url, answers, seen = sulking
    monkeypatch.setattr(buckets, "PATIENCE", 0.0)
    blobs = S3Blobs(url, tmp_path)
    digest = buckets.hashlib.sha256(b"abc").hexdigest()
    part = blobs.part("north", digest, 3)
    part.write(b"abc")
    for status, error, message in (
        (507, DiskFull, "no room left"),
        (503, StoreError, "answers 503"),
        (403, StoreError, "answers 403 : check AWS_ACCESS_KEY_ID"),
        (None, StoreError, "does not answer"),
    ):
        answers.append(status)
        with pytest.raises(error, match=message):
            part.finish()
        part.suspend()
        part = S3Blobs(url, tmp_path).part("north", digest, 3)
        assert part.offset == 3
    part.finish()
    assert seen[-1] == ("PUT", f"/name/{digest}", b"abc")
    assert S3Blobs(url, tmp_path).arrived("north", digest) == 0


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3:///prefix", "is no bucket: give s3://BUCKET/PREFIX"),
        ("s3://name?secret=1", "is no bucket"),
        ("ftp://name", "is no bucket"),
        ("s3://name?endpoint=minio:9000", "its endpoint is no URL"),
    ],
)
def test_a_wrong_url_is_said(monkeypatch, tmp_path, url, message):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=message):
        open_blobs(url, spool=tmp_path)


def test_missing_keys_are_named(monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    with pytest.raises(StoreError, match="'AWS_ACCESS_KEY_ID' is not set"):
        Bucket("s3://name")


def test_region_endpoint_and_prefix_come_from_the_url_or_the_environment(monkeypatch):
    for name, value in {**KEYS, "AWS_REGION": "eu-west-1"}.items():
        monkeypatch.setenv(name, value)
    plain = Bucket("s3://name/a//b/")
    assert (plain.region, plain.prefix, plain._host) == ("eu-west-1", "a/b/", "s3.eu-west-1.amazonaws.com")
    given = Bucket("s3://name?region=x&endpoint=https://minio:9000/base/")
    assert (given.region, given.prefix, given._root) == ("x", "", "/base/name")
