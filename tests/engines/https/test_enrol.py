"""An invitation becomes a certificate once, and a certificate its successor: handlers, a real ledger, and real TLS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import pytest
from cryptography import x509
from ports import Federation, other_authority

from insitu.core.errors import ConfigError
from insitu.engines.https.api.enrol import Enrolment
from insitu.engines.https.api.people import People
from insitu.engines.https.api.table import Table
from insitu.engines.https.authority import Authority, Token, fingerprint, new_key, request_for
from insitu.engines.https.http import Peer, Request
from insitu.engines.https.serve.port import Port
from insitu.engines.https.serve.tls import server_context
from insitu.engines.https.site.enrolment import CERTIFICATE, KEY, enrol
from insitu.engines.https.transport import HttpsTransport
from insitu.store.opened import open_ledger


class House:
    """An authority, a ledger in a file, and the two handlers behind a table."""

    def __init__(self, folder, ledger):
        self.ledger, self.now, self.changes = ledger, [time.time()], 0
        self.authority = Authority.make(folder / "authority", "test", ["localhost", "127.0.0.1"])
        self.people = People(ledger, lambda *told: None)
        api = Enrolment(self.authority, ledger, self.changed, clock=lambda: self.now[0])
        self.table = Table(api.routes(), self.people)

    def changed(self):
        self.changes += 1
        self.people.refresh()

    def invite(self, name="berlin", role="site", seconds=3600.0, urls=("https://localhost",)):
        token = Token.new(urls, self.authority.fingerprint, name, role)
        self.ledger.invite(token.invitation(self.now[0] + seconds))
        return token

    async def ask(self, path, told, peer=None):
        data = told if isinstance(told, bytes) else json.dumps(told).encode()

        async def body():
            yield data

        response = await self.table.handle(Request("POST", path, peer, body=body(), length=len(data)))
        return response.status, json.loads(response.body)

    def enrol(self, token, key, name="x"):
        text = token.text() if isinstance(token, Token) else token
        return self.ask("/v1/enrol", {"token": text, "csr": request_for(key, name).decode()})


@pytest.fixture
def house(tmp_path):
    with open_ledger(tmp_path / "federation.db") as ledger:
        yield House(tmp_path, ledger)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def test_an_invitation_brings_a_certificate_with_its_own_name_and_role(house):
    key = new_key()
    status, told = run(house.enrol(house.invite("berlin", "site"), key, name="root"))
    assert (status, told["name"], told["role"]) == (200, "berlin", "site")
    made = x509.load_pem_x509_certificate(told["certificate"].encode())
    assert made.public_key() == key.public_key()
    assert made.subject.rfc4514_string() == "O=site,CN=berlin"
    assert told["authority"] == house.authority.bundle_text()
    (member,) = house.ledger.members()
    assert (member.name, member.role, member.serial) == ("berlin", "site", f"{made.serial_number:x}")
    assert house.changes == 1


def test_a_used_invitation_lets_nobody_else_in(house):
    token = house.invite()
    run(house.enrol(token, new_key()))
    status, told = run(house.enrol(token, new_key()))
    assert (status, told["error"]) == (403, "BAD_TOKEN")
    assert "used" in told["message"]
    assert len(house.ledger.members()) == 1


def test_the_same_key_may_ask_again_as_its_answer_may_have_been_lost(house):
    token, key = house.invite(), new_key()
    first, again = run(house.enrol(token, key)), run(house.enrol(token, key))
    serials = [x509.load_pem_x509_certificate(told["certificate"].encode()).serial_number for _, told in (first, again)]
    assert first[0] == again[0] == 200
    assert serials[0] == serials[1]
    # But not for ever, and not when it was revoked.
    house.now[0] += 3601
    assert run(house.enrol(token, key))[1]["error"] == "BAD_TOKEN"
    house.now[0] -= 3601
    house.ledger.revoke("berlin", house.now[0])
    assert run(house.enrol(token, key))[1]["error"] == "BAD_TOKEN"


def test_of_many_who_use_one_invitation_at_once_one_gets_in(house):
    token = house.invite()

    async def race():
        return await asyncio.gather(*(house.enrol(token, new_key()) for _ in range(8)))

    answers = run(race())
    assert sorted(status for status, _ in answers) == [200] + [403] * 7
    (member,) = house.ledger.members()
    (won,) = [told for status, told in answers if status == 200]
    assert member.serial == f"{x509.load_pem_x509_certificate(won['certificate'].encode()).serial_number:x}"


def test_an_expired_an_unknown_and_a_damaged_invitation(house):
    late = house.invite(seconds=10.0)
    house.now[0] += 10.0
    unknown = Token.new(["https://localhost"], house.authority.fingerprint, "berlin", "operator")
    for token in (late, unknown, late.text()[:-20], "insitu9.abc", ""):
        status, told = run(house.enrol(token, new_key()))
        assert told["error"] == ("BAD_REQUEST" if token == "" else "BAD_TOKEN"), token
        assert status in (400, 403)
    assert house.ledger.members() == []


def test_a_role_written_into_a_token_does_not_count(house):
    token = house.invite("berlin", "viewer")
    forged = Token(token.urls, token.fingerprint, token.secret, "boss", "operator")
    status, told = run(house.enrol(forged, new_key()))
    assert (status, told["name"], told["role"]) == (200, "berlin", "viewer")


def test_a_name_that_is_taken(house):
    run(house.enrol(house.invite("berlin"), new_key()))
    status, told = run(house.enrol(house.invite("berlin"), new_key()))
    assert (status, told["error"]) == (409, "NAME_TAKEN")


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"token":1,"csr":"x"}', b'{"token":"x"}', b"\xff", b'{"csr":"' + b"x" * 40000 + b'"}']
)
def test_bodies_that_are_none(house, body):
    status, told = run(house.ask("/v1/enrol", body))
    assert told["error"] in ("BAD_REQUEST", "TOO_LARGE", "BAD_TOKEN")
    assert status < 500


def test_a_bad_request_for_a_certificate_does_not_use_up_the_invitation(house):
    token = house.invite()
    assert run(house.ask("/v1/enrol", {"token": token.text(), "csr": "nonsense"}))[1]["error"] == "BAD_REQUEST"
    assert run(house.enrol(token, new_key()))[0] == 200


def test_a_renewal_counts_from_its_first_use_and_the_old_one_no_more(house):
    run(house.enrol(house.invite(), new_key()))
    old = Peer("berlin", "site", house.ledger.members()[0].serial)

    async def renew(peer):
        return await house.ask("/v1/renew", {"csr": request_for(new_key(), "x").decode()}, peer)

    lost, told = run(renew(old))[1], run(renew(old))[1]  # the first answer was lost
    made = [x509.load_pem_x509_certificate(t["certificate"].encode()) for t in (lost, told)]
    assert made[1].subject.rfc4514_string() == "O=site,CN=berlin"
    assert run(renew(old))[0] == 200  # nothing has been used yet
    new = Peer("berlin", "site", f"{made[1].serial_number:x}")
    assert run(renew(new))[0] == 200
    house.people.refresh()
    assert house.ledger.members()[0].serial == new.serial
    for gone in (old, Peer("berlin", "site", f"{made[0].serial_number:x}")):
        assert run(renew(gone))[1]["error"] == "UNKNOWN_CERTIFICATE"


@contextlib.asynccontextmanager
async def port_of(house, authority=None):
    shown = authority or house.authority
    port = Port(house.table, lambda: server_context(shown.chain, shown.key, shown.bundle), "127.0.0.1", 0)
    await port.start()
    try:
        yield port, f"https://localhost:{port.addresses[0][1]}"
    finally:
        await port.stop(0.2)


def test_a_site_joins_over_tls_and_is_a_member_then(house, tmp_path):
    async def join():
        async with port_of(house) as (_, url):
            token = house.invite(urls=(url,))
            name, role = await enrol(token, tmp_path / "site")
            transport = HttpsTransport(
                [url], tmp_path / "site" / CERTIFICATE, tmp_path / "site" / KEY, tmp_path / "site" / "authority.pem"
            )
            try:
                csr = json.dumps({"csr": request_for(new_key(), "x").decode()}).encode()
                reply = await transport.request("POST", "/v1/renew", body=csr, length=len(csr))
            finally:
                await transport.close()
            modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "site", tmp_path / "site" / KEY)]
            return name, role, reply.status, modes

    (tmp_path / "site").mkdir(mode=0o755)  # of somebody who had made it before
    assert run(join()) == ("berlin", "site", 200, [0o700, 0o600])


def test_the_secret_is_not_told_to_a_coordinator_of_another_authority(house, tmp_path):
    """One with the same title, in between: the fingerprint in the token tells them apart before anything is said."""
    between = other_authority(tmp_path)

    async def join():
        async with port_of(house, between) as (port, url):
            token = house.invite(urls=(url,))
            with pytest.raises(ConfigError, match="another authority"):
                await enrol(token, tmp_path / "site")
            return port.counts["accepted"], house.changes

    assert run(join()) == (1, 0)
    assert house.ledger.invitations()[0].used is None


def test_a_stranger_that_shows_the_right_authority_without_its_signature_is_not_believed(house, tmp_path):
    """It can send the authority's certificate along, which is no secret; its own is signed by somebody else."""
    between = other_authority(tmp_path)
    own = between.chain.read_bytes().split(b"-----END CERTIFICATE-----\n")[0] + b"-----END CERTIFICATE-----\n"
    between.chain.write_bytes(own + house.authority.bundle.read_bytes())

    async def join():
        async with port_of(house, between) as (_, url):
            token = house.invite(urls=(url,))
            with pytest.raises(OSError, match="trust"):
                await enrol(token, tmp_path / "site")

    run(join())
    assert house.changes == 0
    assert fingerprint(house.authority.trusted()[0]) == house.authority.fingerprint


def test_a_coordinator_under_another_host_name_is_not_believed(house, tmp_path):
    elsewhere = Federation(tmp_path / "elsewhere", hosts=("coordinator.example",))
    house.authority = elsewhere.authority

    async def join():
        async with port_of(house) as (_, url):
            token = house.invite(urls=(url,))
            with pytest.raises(OSError, match="localhost"):
                await enrol(token, tmp_path / "site")

    run(join())
    assert house.changes == 0


def test_an_attempt_that_failed_keeps_its_key_for_the_next(house, tmp_path):
    async def join():
        token = house.invite(urls=("https://localhost:1",))
        with pytest.raises(OSError, match="localhost:1"):
            await enrol(token, tmp_path / "site")
        key = (tmp_path / "site" / KEY).read_bytes()
        async with port_of(house) as (_, url):
            await enrol(token, tmp_path / "site", [url])
            with pytest.raises(ConfigError, match="enrolled"):
                await enrol(token, tmp_path / "site", [url])
        return key == (tmp_path / "site" / KEY).read_bytes()

    assert run(join())
