"""The two stand-ins for AWS, each a process on loopback, and a way to ask them that cannot reach anything else."""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from infra.rehearsal.record import RehearsalError
from local.services import HOST, ping_http
from local.supervisor import Child

REGION: Final = "eu-west-1"
MOTO_ACCOUNT: Final = "123456789012"
MINISTACK_ACCOUNT: Final = "000000000000"  # its data plane finds the APIs of its own account only
_KEYS: Final = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}


def moto(port: int) -> Child:
    """moto's server. It creates what it knows and skips the rest; it runs no code."""
    return Child(
        "moto", (sys.executable, "-m", "local.moto_server", "-H", HOST, "-p", str(port)), lambda: ping_http(port, "/moto-api/data.json"), environment=_KEYS
    )


def moto_url(port: int) -> str:
    """By name: moto reads the bucket of a TemplateURL from its path only when the host is called localhost."""
    return f"http://localhost:{port}"


def ministack(programs: Path, port: int, folder: Path) -> Child:
    """MiniStack on loopback only (it binds every interface unless told), its files below `folder`. Lambdas run as its children, with its environment."""
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    environment = _KEYS | {
        "BIND_HOST": HOST,
        "GATEWAY_PORT": str(port),
        "MINISTACK_REGION": REGION,
        "IOT_MTLS_ENABLED": "0",
        "TMPDIR": str(folder / "tmp"),
        "STATE_DIR": str(folder / "state"),
        "NO_PROXY": f"{HOST},localhost",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return Child("ministack", (str(programs / "ministack"),), lambda: ping_http(port, "/_ministack/health"), environment=environment, start_timeout_s=60)


def ministack_url(port: int) -> str:
    return f"http://{HOST}:{port}"


@dataclass(frozen=True, slots=True)
class Asker:
    """boto3 clients of one stand-in: `client(service)`, as a session has it."""

    endpoint_url: str
    region: str = REGION
    _clients: dict[str, Any] = field(default_factory=dict)

    def client(self, service: str) -> Any:
        import boto3
        from botocore.config import Config

        if service not in self._clients:
            config = Config(retries={"total_max_attempts": 2}, connect_timeout=5, read_timeout=30)
            session: Any = boto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name=self.region)
            self._clients[service] = session.client(service, endpoint_url=self.endpoint_url, config=config)
        return self._clients[service]


def must_be_on_loopback(port: int) -> None:
    """Raises RehearsalError when the port answers on this machine's address in its network too: a stand-in checks nobody's keys."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect(("192.0.2.1", 9))  # sends nothing: it only chooses the address that packets would leave from
        except OSError:
            return  # there is no network
        address = asked.getsockname()[0]
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tried:
        tried.settimeout(2)
        if not address.startswith("127.") and tried.connect_ex((address, port)) == 0:
            raise RehearsalError(f"Port {port} answers on {address}: a stand-in must be on loopback only.")
