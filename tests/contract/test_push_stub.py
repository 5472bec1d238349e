"""The stub FCM answers as FCM does, seen through the real firebase-admin client. Shapes: FCM HTTP v1 reference, ErrorCode and throttling pages."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from local import service_aws
from local.push_stub import PushStub

warnings.filterwarnings("ignore", category=DeprecationWarning, module="firebase_admin")


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("secrets") / "secrets.json"
    account: dict[str, Any] = service_aws.load_secrets(path, mongodb_uri="mongodb://x", push_stub_url="http://127.0.0.1:1")["fcm"]
    assert path.stat().st_mode & 0o777 == 0o600
    return account


@pytest.fixture
async def stub(account: dict[str, Any]) -> AsyncIterator[PushStub]:
    stub = PushStub(account)
    await stub.start()
    account["token_uri"] = f"{stub.url}/token"
    yield stub
    await stub.close()


class Firebase:
    """firebase-admin against the stub, its own retries switched off."""

    def __init__(self, account: dict[str, Any], url: str) -> None:
        import firebase_admin
        from firebase_admin import credentials, messaging
        from requests.adapters import HTTPAdapter

        self.messaging: Any = messaging
        self.app = firebase_admin.initialize_app(credentials.Certificate(account), {"projectId": account["project_id"], "httpTimeout": 2}, name=url)
        service = messaging._get_messaging_service(self.app)
        service._fcm_url = f"{url}/v1/projects/{account['project_id']}/messages:send"
        service._client.session.mount(url, HTTPAdapter(max_retries=0))

    async def send(self, target: str = "device-1", text: str = "hi") -> str:
        message = self.messaging.Message(data={"text": text}, fid=target)
        return str(await asyncio.to_thread(self.messaging.send, message, app=self.app))


@pytest.fixture
def firebase(account: dict[str, Any], stub: PushStub) -> Iterator[Firebase]:
    import firebase_admin

    firebase = Firebase(account, stub.url)
    yield firebase
    firebase_admin.delete_app(firebase.app)


async def order(stub: PushStub, **what: Any) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session, session.post(f"{stub.url}/inject", json=what) as answer:
        data: dict[str, Any] = await answer.json()
        return data


async def test_a_message_arrives_and_is_listed(stub: PushStub, firebase: Firebase) -> None:
    name = await firebase.send()
    assert name.startswith("projects/heliograph-local/messages/")
    async with aiohttp.ClientSession() as session, session.get(f"{stub.url}/received") as answer:
        received = (await answer.json())["received"]
    assert [(each["name"], each["target"], each["message"]["data"]) for each in received] == [(name, "device-1", {"text": "hi"})]


async def test_a_dead_target_is_unregistered_and_a_living_one_is_not(stub: PushStub, firebase: Firebase) -> None:
    await order(stub, dead=["device-1"])
    with pytest.raises(firebase.messaging.UnregisteredError):
        await firebase.send("device-1")
    assert await firebase.send("device-2")


@pytest.mark.parametrize(
    ("fault", "error", "retry_after"),
    [
        ({"kind": "quota", "retry_after_s": 7}, "firebase_admin.messaging.QuotaExceededError", "7"),
        ({"kind": "unavailable", "retry_after_s": 3}, "firebase_admin.exceptions.UnavailableError", "3"),
        ({"kind": "internal"}, "firebase_admin.exceptions.InternalError", None),
        ({"kind": "unregistered"}, "firebase_admin.messaging.UnregisteredError", None),
    ],
)
async def test_an_ordered_fault_meets_the_next_sends_and_no_more(
    stub: PushStub, firebase: Firebase, fault: dict[str, Any], error: str, retry_after: str
) -> None:
    from firebase_admin import exceptions

    await order(stub, **fault, count=2)
    for _ in range(2):
        with pytest.raises(exceptions.FirebaseError) as refused:
            await firebase.send()
        module, _, name = error.rpartition(".")
        assert type(refused.value).__name__ == name, (module, refused.value)
        assert refused.value.http_response.headers.get("Retry-After") == retry_after
    assert await firebase.send()


async def test_a_payload_above_4096_bytes_is_an_invalid_argument(firebase: Firebase) -> None:
    from firebase_admin import exceptions

    assert await firebase.send(text="x" * 4000)
    with pytest.raises(exceptions.InvalidArgumentError, match="too big"):
        await firebase.send(text="x" * 4100)


async def test_an_accepted_message_may_never_be_answered(stub: PushStub, firebase: Firebase) -> None:
    from firebase_admin import exceptions

    await order(stub, kind="accept_then_hang", delay_s=0.2)
    with pytest.raises(exceptions.FirebaseError):
        await firebase.send()
    assert len(stub.received) == 1, "the sender cannot know, but FCM has it"


async def test_only_the_service_account_gets_a_token(stub: PushStub, account: dict[str, Any], tmp_path: Path) -> None:
    from google.auth.exceptions import RefreshError
    from google.auth.transport.requests import Request
    from google.oauth2 import service_account

    stranger = service_aws.load_secrets(tmp_path / "other.json", mongodb_uri="", push_stub_url=stub.url)["fcm"]
    scopes = ["https://www.googleapis.com/auth/firebase.messaging"]
    ours: Any = service_account.Credentials.from_service_account_info(account, scopes=scopes)  # type: ignore[no-untyped-call]
    theirs: Any = service_account.Credentials.from_service_account_info(stranger, scopes=scopes)  # type: ignore[no-untyped-call]
    await asyncio.to_thread(ours.refresh, Request())
    assert ours.token.startswith("ya29.")
    with pytest.raises(RefreshError):
        await asyncio.to_thread(theirs.refresh, Request())


@pytest.mark.parametrize(
    ("token", "body", "status", "code"),
    [
        ("", {"message": {"token": "t"}}, 401, "UNAUTHENTICATED"),
        ("stolen", {"message": {"token": "t"}}, 401, "UNAUTHENTICATED"),
        ("good", {}, 400, "INVALID_ARGUMENT"),
        ("good", {"message": {"data": {}}}, 400, "INVALID_ARGUMENT"),
        ("good", {"message": {"token": "t"}}, 200, None),
        ("good", {"message": {"fid": "f"}}, 200, None),
    ],
)
async def test_the_door_checks_the_bearer_and_the_shape(stub: PushStub, token: str, body: dict[str, Any], status: int, code: str | None) -> None:
    stub._tokens["good"] = float("inf")
    url = f"{stub.url}/v1/projects/heliograph-local/messages:send"
    async with aiohttp.ClientSession() as session, session.post(url, json=body, headers={"Authorization": f"Bearer {token}"}) as answer:
        data = await answer.json()
    assert (answer.status, data.get("error", {}).get("status")) == (status, code)


async def test_an_unknown_fault_is_refused_and_nothing_is_ordered(stub: PushStub) -> None:
    assert "must be one of" in (await order(stub, kind="meteor"))["error"]
    assert not stub._faults
