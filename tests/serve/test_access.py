"""Who may talk to a policy server: its token, its names, web pages, encryption, and what binding to
a network asks."""

import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from scripts import drive_remote
from tests.serve.small_server import Named, observation, served
from vla.commands import serve as serve_policy
from vla.network_hosts import is_local_host, is_loopback
from vla.serve.access import AccessPolicy, check_exposure, find_token, tls_context
from vla.serve.client import RemotePolicy
from vla.serve.options import read_access, read_limits

PEM = Path(__file__).parent / "localhost.pem"
"""A certificate and a key for localhost, signed by itself; made for these tests."""
TOKEN = "correct-horse"


def status_of(port: int, path: str, **headers: str) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def handshake(address: str, **headers: str) -> int:
    """The status that a websocket client is answered with; 101 lets it in."""
    try:
        with connect(address, compression=None, additional_headers=headers) as connection:
            connection.recv(timeout=10)
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {TOKEN}", 101),
        (f"bearer {TOKEN}", 101),
        (f"Api-Key {TOKEN}", 101),  # openpi's client
        (f"Basic {TOKEN}", 401),
        (TOKEN, 401),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        ("Bearer ", 401),
        ("Bearer pässword", 401),
    ],
)
def test_a_token_opens_in_the_forms_of_both_clients(header, status):
    with served(Named(), AccessPolicy(TOKEN)) as at:
        assert handshake(at.address, Authorization=header) == status
        if status == 101:
            assert status_of(at.port, "/status", Authorization=header) == 200


def test_without_its_token_a_server_answers_for_its_health_only():
    with served(Named(), AccessPolicy(TOKEN)) as at:
        assert status_of(at.port, "/healthz") == 200
        assert status_of(at.port, "/status") == 401
        with pytest.raises(
            ValueError, match=r"refuses \(401\): a token is needed, in a header 'Authorization"
        ):
            RemotePolicy(at.address)
        policy = RemotePolicy(at.address, token=TOKEN)
        assert policy.infer(observation(1.0))[0, 0] == 1.0
        policy.close()
    assert TOKEN not in repr(AccessPolicy(TOKEN))


def test_web_pages_and_other_names_are_turned_away():
    access = AccessPolicy(hosts=("gpu.example",), origins=("https://panel.example",))
    with served(Named(), access) as at:
        assert handshake(at.address) == 101  # programs send no origin
        assert handshake(at.address, Origin="http://evil.example") == 403
        assert handshake(at.address, Origin="null") == 403
        assert handshake(at.address, Origin="https://panel.example") == 101
        assert status_of(at.port, "/status", Host="evil.example") == 403
        assert status_of(at.port, "/status", Host=f"gpu.example:{at.port}") == 200
        assert status_of(at.port, "/healthz", Host="evil.example") == 200


@pytest.mark.parametrize(
    ("header", "is_own"),
    [
        ("localhost", True),
        ("LOCALHOST:8000", True),
        ("127.0.0.1:9", True),
        ("[::1]:8000", True),
        ("10.0.0.7", True),
        ("evil.example", False),
        ("localhost.evil.example:8000", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
    ],
)
def test_addresses_and_own_names_are_a_machines_and_no_others(header, is_own):
    assert is_local_host(header) == is_own
    assert is_local_host("name:1", ("NAME",))
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("example.org")


def test_connections_can_be_encrypted(monkeypatch):
    with served(Named(), AccessPolicy(tls=tls_context(PEM, PEM))) as at:
        monkeypatch.setenv("SSL_CERT_FILE", str(PEM))
        policy = RemotePolicy(at.address.replace("ws://127.0.0.1", "wss://localhost"))
        assert policy.infer(observation(1.0))[0, 0] == 1.0
        assert isinstance(policy.connection.socket, ssl.SSLSocket)
        policy.close()
        with pytest.raises(ValueError, match="no policy is served at"):
            RemotePolicy(at.address, patience_seconds=5)


def test_a_token_comes_from_a_flag_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("VLA_SERVE_TOKEN", raising=False)
    assert find_token(None) is None
    monkeypatch.setenv("VLA_SERVE_TOKEN", "from-environment")
    (tmp_path / "token").write_text("from-file\n")
    assert find_token(None) == "from-environment"
    assert find_token(None, tmp_path / "token") == "from-file"
    assert find_token("given", tmp_path / "token") == "given"
    for wrong in ("", "two words", "línea", "line\nline"):
        with pytest.raises(ValueError, match="--token holds no token: give letters"):
            find_token(wrong)


def test_a_network_is_served_with_a_token_or_by_an_explicit_word():
    with pytest.raises(
        ValueError, match=r"--host 0.0.0.0 admits other machines without a token.*--no-token"
    ):
        check_exposure("0.0.0.0", AccessPolicy(), allow_anyone=False)
    assert [
        warning.split(":")[0]
        for warning in check_exposure("0.0.0.0", AccessPolicy(), allow_anyone=True)
    ] == [
        "any machine that reaches 0.0.0.0 may use this policy",
        "messages and tokens are not encrypted",
    ]
    assert (
        check_exposure(
            "0.0.0.0", AccessPolicy(TOKEN, tls=tls_context(PEM, PEM)), allow_anyone=False
        )
        == []
    )
    assert check_exposure("127.0.0.1", AccessPolicy(), allow_anyone=False) == []


def read_both(options) -> None:
    read_access(options)
    read_limits(options, observation_bytes=100_000)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 admits other machines"),
        (["--host", "::"], "--host :: admits other machines"),
        (["--token", ""], "--token holds no token"),
        (["--token", "x", "--no-token"], "--no-token goes with no token"),
        (["--token-file", "missing"], "--token-file missing cannot be read"),
        (["--tls-key", str(PEM)], "--tls-certificate and --tls-key go together"),
        (["--tls-certificate", str(PEM), "--tls-key", __file__], "are no pair of PEM files"),
        (["--tls-certificate", "missing", "--tls-key", "missing"], "are no pair of PEM files"),
        (["--max-batch", "0"], r"--max-batch \(0\) must be at least 1"),
        (["--max-rate", "nan"], r"--max-rate \(nan\) must be above 0"),
        (["--wait-ms", "-1"], "--wait-ms must be finite and not negative"),
        *(
            (["--max-message-mb", number], f"--max-message-mb {number}")
            for number in ("nan", "inf", "-1.0", "0.0")
        ),
        (
            ["--max-message-mb", "0.01"],
            "--max-message-mb 0.01 holds no observation of this policy, or has no end: give at "
            "least 0.10",
        ),
    ],
)
def test_flags_that_cannot_be_are_refused_before_anything_loads(flags, complaint, monkeypatch):
    monkeypatch.delenv("VLA_SERVE_TOKEN", raising=False)
    options = serve_policy.parse(["no-such-run", *flags])
    with pytest.raises((ValueError, OSError), match=complaint):
        read_both(options)


@pytest.mark.parametrize("port", ["-1", "65536", "8000.5", "x"])
def test_a_port_is_a_port(port, capsys):
    with pytest.raises(SystemExit):
        serve_policy.parse(["run", f"--port={port}"])
    assert "is no port: give a whole number from 0 to 65535" in capsys.readouterr().err


def test_the_client_of_the_simulator_sends_a_token(monkeypatch):
    monkeypatch.setenv("VLA_SERVE_TOKEN", "wrong")
    with served(Named(), AccessPolicy(TOKEN)) as at:
        for flags in ([], ["--token", "wrong"]):
            with pytest.raises(ValueError, match=r"refuses \(401\)"):
                drive_remote.drive(drive_remote.parse([at.address, *flags]))
        # Let in, it meets what this small server lacks.
        with pytest.raises(KeyError, match="image_size"):
            drive_remote.drive(drive_remote.parse([at.address, "--token", TOKEN]))
