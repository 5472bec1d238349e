"""Our relay as a process, as independent peers see it: addresses over UDP, TCP and TLS, a user, and the authority that signed its certificate."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from local.services import choose_ports
from tests.certificates import Certificates
from tests.running import ROOT, program, wait_until

USER, PASSWORD, REALM = "ann", "pass", "heliograph"
BINDING = bytes.fromhex("00010000 2112a442") + bytes(12)  # a STUN Binding request, RFC 8489 s5


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnServer:
    """A TURN server under test; it listens on every one of `hosts`."""

    hosts: tuple[str, ...]
    port: int  # UDP and TCP
    tls_port: int
    authority: Path
    pid: int

    def port_of(self, transport: str) -> int:
        return self.tls_port if transport == "tls" else self.port

    def url(self, transport: str, host: str) -> str:
        """The RFC 7065 URI for `udp`, `tcp` or `tls` to this host (an address, or a name of one)."""
        scheme, below = ("turns", "tcp") if transport == "tls" else ("turn", transport)
        return f"{scheme}:{f'[{host}]' if ':' in host else host}:{self.port_of(transport)}?transport={below}"

    def ice_server(self, transport: str, host: str) -> dict[str, str]:
        """An RTCIceServer."""
        return {"urls": self.url(transport, host), "username": USER, "credential": PASSWORD}


def _relay(hosts: tuple[str, ...], port: int, tls_port: int, made: Certificates, allow_peers: tuple[str, ...]) -> list[str]:
    """The command that starts our relay."""
    command = [sys.executable, "-m", "media_fleet", "relay", "--realm", REALM, "--user", f"{USER}:{PASSWORD}"]
    for host in (f"[{host}]" if ":" in host else host for host in hosts):
        command += ["--listen", f"{host}:{port}", "--listen-tcp", f"{host}:{port}", "--listen-tls", f"{host}:{tls_port}"]
    for cidr in allow_peers:
        command += ["--allow-peer", cidr]
    command += [] if "127.0.0.1" in hosts else ["--unasked-family", "client"]
    return [*command, "--certificate", str(made.chain), "--private-key", str(made.key)]


def _coturn(hosts: tuple[str, ...], port: int, tls_port: int, made: Certificates, allow_peers: tuple[str, ...]) -> list[str]:
    """The command that starts coturn as the same server: TURN_UNDER_TEST=coturn tells a wrong test from a wrong relay."""
    del allow_peers  # coturn has no finer switch than one for all of loopback, and without it no two clients of one machine reach each other
    command = [program("turnserver"), "-n", "--no-cli", "--no-dtls", "--no-rfc5780", "--lt-cred-mech", "--allow-loopback-peers"]
    command += ["--log-file=stdout", "--pidfile="]
    command += [f"--user={USER}:{PASSWORD}", f"--realm={REALM}", f"--listening-port={port}", f"--tls-listening-port={tls_port}"]
    command += [f"--{kind}-ip={host}" for host in hosts for kind in ("listening", "relay")]
    command += [] if "127.0.0.1" in hosts else ["--allocation-default-address-family=keep"]
    return [*command, f"--cert={made.chain}", f"--pkey={made.key}"]


@contextmanager
def running_relay(folder: Path, made: Certificates, *hosts: str, allow_peers: tuple[str, ...] = ()) -> Iterator[TurnServer]:
    """Started, and ended by its pid. Relayed addresses are of these hosts; a client that asks for no family gets IPv4 where there is one."""
    ports = choose_ports(("turn", "turns"), {})
    command = {"relay": _relay, "coturn": _coturn}[os.environ.get("TURN_UNDER_TEST", "relay")]
    log = folder / f"relay-{ports['turn']}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command(hosts, ports["turn"], ports["turns"], made, allow_peers), cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        server = TurnServer(hosts=hosts, port=ports["turn"], tls_port=ports["turns"], authority=made.authority, pid=process.pid)
        try:
            wait_until(f"a relay that answers (log: {log})", lambda: process.poll() is not None or _answers(server), 20)
            assert process.poll() is None, log.read_text()
            yield server
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(server: TurnServer) -> bool:
    """Whether every listener is there."""
    try:
        for host in server.hosts:
            for port in (server.port, server.tls_port):
                socket.create_connection((host, port), 1).close()
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(1)
                client.connect((host, server.port))
                client.send(BINDING)
                client.recv(1500)
    except OSError:
        return False
    return True
