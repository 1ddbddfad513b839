"""Who gets through the coordinator's door, over real TLS: each refusal as issue and FAULTS.md name it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import ssl
import time
from random import Random

import pytest
from cryptography.hazmat.primitives import hashes
from ports import DAY, Caller, Federation, asked, other_authority, serving

from insitu.engines.https.authority import certificates, keys


@pytest.fixture
def federation(tmp_path):
    return Federation(tmp_path)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def code(body: bytes) -> str:
    return json.loads(body)["error"]


def test_a_member_is_known_by_its_certificate(federation):
    berlin, boss = federation.member("berlin"), federation.member("boss", "operator")

    async def both():
        async with serving(federation) as port:
            return [await asked(port, federation.client_tls(files)) for files in (berlin, boss)]

    assert [(status, json.loads(body)) for status, body in run(both())] == [
        (200, {"name": "berlin", "role": "site"}),
        (200, {"name": "boss", "role": "operator"}),
    ]


def test_without_a_certificate_only_enrolment_is_reached(federation):
    calls = []

    async def stranger():
        async with serving(federation, calls=calls) as port:
            tls = federation.client_tls()
            found = {}
            for method, path in (
                ("GET", "/v1/who"), ("GET", "/v1/nothing"), ("DELETE", "/v1/who"), ("GET", "/v1/enrol"),
                ("GET", "/v1/../x"), ("POST", "/v1/table"), ("GET", "/"), ("POST", "/v1/enrol/"),
            ):  # fmt: skip
                found[method, path] = await asked(port, tls, path, method, b"" if method == "POST" else None)
            return found, await asked(port, tls, "/v1/enrol", "POST", b'{"token":"x"}')

    refused, enrolled = run(stranger())
    # One and the same answer: what exists cannot be told from what does not.
    assert len(set(refused.values())) == 1
    status, body = refused["GET", "/v1/who"]
    assert (status, code(body)) == (401, "NO_CERTIFICATE")
    assert enrolled[0] == 200
    assert calls == [("enrol", {"token": "x"})]


def strange(federation, kind):
    """(certificate, key) files that are not good, and a word of OpenSSL's reason."""
    now = time.time()
    if kind == "another authority's":
        return federation.member("berlin", authority=other_authority(federation.folder)), "issuer"
    if kind == "expired":
        return federation.member("berlin", now=now - 400 * DAY), "expired"
    if kind == "not yet valid":
        return federation.member("berlin", now=now + 3 * DAY), "not yet valid"
    key = keys.new_key()
    if kind == "a server's":
        issuer = federation.authority.trusted()[0]
        made = certificates.coordinator(key.public_key(), ["x"], issuer, federation.authority._signer(issuer), now)
        return federation.kept("berlin", certificates.pem(made), key), "purpose"
    made = certificates.authority(key, "of its own", now)
    assert kind == "self-signed"
    return federation.kept("berlin", certificates.pem(made), key), "self-signed"


@pytest.mark.parametrize("kind", ["another authority's", "expired", "not yet valid", "a server's", "self-signed"])
def test_a_certificate_that_is_not_good_ends_in_an_alert_and_a_line_that_names_it(federation, caplog, kind):
    files, reason = strange(federation, kind)
    good = federation.member("paris")
    calls = []

    async def refused():
        async with serving(federation, calls=calls) as port:
            with pytest.raises((ssl.SSLError, ConnectionError), match="alert"):
                await asked(port, federation.client_tls(files))
            # It is known by its certificate, not remembered by its address.
            assert (await asked(port, federation.client_tls(good)))[0] == 200
            return port.counts["handshakes failed"]

    with caplog.at_level(logging.WARNING, "insitu.https"):
        assert run(refused()) == 1
    assert [c[1].name for c in calls] == ["paris"]
    lines = [r.getMessage() for r in caplog.records if "TLS with" in r.getMessage()]
    assert len(lines) == 1
    shown = certificates.x509.load_pem_x509_certificate(files[0].read_bytes())
    assert f"serial {shown.serial_number:x}" in lines[0]
    assert shown.subject.rfc4514_string() in lines[0]
    assert "127.0.0.1" in lines[0]
    assert reason in lines[0]


def test_a_subject_with_control_characters_cannot_write_into_the_log(federation, caplog):
    key = keys.new_key()
    name = certificates.x509.Name(
        [certificates.x509.NameAttribute(certificates.NameOID.COMMON_NAME, "a\n2026 ERROR all is lost\x1b[31m")]
    )
    now = certificates.moment(time.time())
    made = (
        certificates.x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
        .not_valid_before(now - certificates.SKEW).not_valid_after(now + certificates.SKEW)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    files = federation.kept("odd", certificates.pem(made), key)

    async def refused():
        async with serving(federation) as port:
            with pytest.raises((ssl.SSLError, ConnectionError), match="alert"):
                await asked(port, federation.client_tls(files))

    with caplog.at_level(logging.WARNING, "insitu.https"):
        run(refused())
    (line,) = [r.getMessage() for r in caplog.records if "TLS with" in r.getMessage()]
    assert "serial 7" in line
    assert "\n" not in line
    assert "\x1b" not in line


def test_a_name_that_is_not_the_certificates_is_refused(federation):
    files = federation.member("berlin", called="paris")

    async def refused():
        async with serving(federation) as port:
            return await asked(port, federation.client_tls(files))

    status, body = run(refused())
    assert (status, code(body)) == (401, "UNKNOWN_CERTIFICATE")


def test_tls_1_2_is_refused(federation):
    tls = federation.client_tls(federation.member("berlin"))
    tls.maximum_version = ssl.TLSVersion.TLSv1_2

    async def refused():
        async with serving(federation) as port:
            with pytest.raises(ssl.SSLError, match="alert protocol version"):
                await Caller.to(port, tls)

    run(refused())


def test_a_session_cannot_be_resumed(federation):
    """So that a certificate is looked at for each connection, and there is nothing that 0-RTT could replay."""
    tls = federation.client_tls(federation.member("berlin"))

    async def session():
        async with serving(federation) as port:
            caller = await Caller.to(port, tls)
            await caller.get("/v1/who")
            found = caller.writer.get_extra_info("ssl_object").session
            version = caller.writer.get_extra_info("ssl_object").version()
            await caller.close()
            return version, found.has_ticket if found is not None else False

    assert run(session()) == ("TLSv1.3", False)


def test_a_revoked_member_is_cut_off_at_once_with_its_long_poll_and_its_upload(federation):
    berlin, paris = federation.member("berlin"), federation.member("paris")
    calls = []

    async def revoke():
        async with serving(federation, calls=calls) as port:
            tls = federation.client_tls(berlin)
            poll, upload = await Caller.to(port, tls), await Caller.to(port, tls)
            other = await Caller.to(port, federation.client_tls(paris))
            await poll.send(b"GET /v1/wait HTTP/1.1\r\nhost: x\r\n\r\n")
            await upload.send(
                b"PUT /v1/chunks/abc HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 1000
            )
            await other.send(b"GET /v1/wait HTTP/1.1\r\nhost: x\r\n\r\n")
            while len(calls) < 2 or port.open["uploads"] < 1:
                await asyncio.sleep(0.01)
            serial = federation.serial("berlin")
            federation.revoked.add(serial)
            assert port.cut([serial]) == 2
            ended = [await poll.ended(2), await upload.ended(2), await other.ended(0.2)]
            again = await asked(port, tls)
            for caller in (poll, upload, other):
                await caller.close()
            while port.open["uploads"]:
                await asyncio.sleep(0.01)
            return ended, again

    ended, (status, body) = run(revoke())
    assert ended == [True, True, False]
    assert (status, code(body)) == (403, "REVOKED")
    assert ("take", "berlin", 1000) in calls  # the handler knows what has arrived


def test_certificates_can_be_replaced_while_it_serves(federation):
    """The overlap: the old authority's members and the new one's are both let in, then the new one's only."""
    old = federation.member("berlin")

    async def rotate():
        async with serving(federation) as port:
            before = await asked(port, federation.client_tls(old))
            federation.authority.rotate("test")
            port.reload()
            new = federation.member("paris")
            both = [await asked(port, federation.client_tls(files)) for files in (old, new)]
            federation.authority.retire()
            port.reload()
            after = await asked(port, federation.client_tls(new))
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asked(port, federation.client_tls(old))
            return [status for status, _ in (before, *both, after)]

    assert run(rotate()) == [200, 200, 200, 200]


def test_a_drain_ends_what_is_idle_waits_for_uploads_and_cancels_what_hangs(federation):
    berlin = federation.member("berlin")
    calls = []

    async def drain():
        async with serving(federation, calls=calls) as port:
            tls = federation.client_tls(berlin)
            idle, upload, poll = [await Caller.to(port, tls) for _ in range(3)]
            await idle.get("/v1/who")
            await upload.send(
                b"PUT /v1/chunks/abc HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n" + b"x" * 50000
            )
            await poll.send(b"GET /v1/wait HTTP/1.1\r\nhost: x\r\n\r\n")
            while port.open["requests"] < 2:
                await asyncio.sleep(0.01)
            stopping = asyncio.create_task(port.stop(1.0))
            assert await idle.ended(1.0)
            with pytest.raises(OSError, match=r"refused|Connect call failed"):
                await Caller.to(port, tls)
            await upload.send(b"x" * 50000)
            answered = await upload.answer()
            assert await poll.ended(3.0)
            await stopping
            for caller in (idle, upload, poll):
                await caller.close()
            return answered, port.open

    (status, body), left = run(drain())
    assert (status, json.loads(body)) == (200, {"bytes": 100000})
    assert left == {"connections": 0, "handshakes": 0, "requests": 0, "uploads": 0}


def test_what_several_send_at_once_is_not_mixed_up(federation):
    """All connections read into the same buffers, which the longest of these bodies fill several times."""
    bodies = [Random(i).randbytes(size) for i, size in enumerate((3 * 2**20, 2**20 + 1, 700_001, 16_384, 5))]
    files = federation.member("berlin")

    async def sent(port, body):
        caller = await Caller.to(port, federation.client_tls(files))
        try:
            head = f"PUT /v1/hashed HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            await caller.send(head)
            for at in range(0, len(body), 300_007):  # no whole number of records
                await caller.send(body[at : at + 300_007])
                await asyncio.sleep(0)
            return await caller.answer(30.0)
        finally:
            await caller.close()

    async def go():
        async with serving(federation) as port:
            return await asyncio.gather(*(sent(port, body) for body in bodies))

    for body, (status, answer) in zip(bodies, run(go()), strict=True):
        assert (status, json.loads(answer)["sha256"]) == (200, hashlib.sha256(body).hexdigest())
