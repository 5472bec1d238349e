"""The same frames as they are usually handled: SDK clients and pydantic models at the top of one module, a tracer, one adapter per line of the tutorial.

It writes the same records and posts the same events. It does less: SDP and candidates are not looked at, calls have no negotiation rules, nothing is
refused with a code, a newer socket does not end an older one.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from typing import Annotated, Any, Literal

import boto3
import redis
from aws_lambda_powertools import Logger, Tracer
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pymongo import MongoClient

Id = Annotated[str, StringConstraints(pattern=r"^(msg|room|acc|dev|call)_[0-9a-f]{32}$")]

logger = Logger(service="naive")
tracer = Tracer(service="naive")
store: Any = redis.Redis.from_url(os.environ["HELIOGRAPH_REDIS_URL"], decode_responses=True)
secret = boto3.client("secretsmanager").get_secret_value(SecretId="mongodb")
ledger: Any = MongoClient(json.loads(secret["SecretString"])["uri"], w="majority", journal=True)["heliograph"]
sockets = boto3.client("apigatewaymanagementapi", endpoint_url=os.environ["HELIOGRAPH_CONNECTIONS_URL"])
queue = boto3.client("sqs")

advance = store.register_script("""
if tonumber(redis.call('GET', KEYS[1]) or '0') < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2]) end
""")
enter = store.register_script("""
local is_new = redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('HSETNX', KEYS[2], 'epoch', ARGV[3])
if is_new > 0 then redis.call('HINCRBY', KEYS[2], 'version', 1) end
redis.call('EXPIRE', KEYS[1], 7500)
redis.call('EXPIRE', KEYS[2], 7500)
return {is_new, redis.call('HGETALL', KEYS[1])}
""")
replace_call = store.register_script("""
local stored = redis.call('GET', KEYS[1])
if (stored and cjson.decode(stored).version or 0) ~= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', 21600)
return 1
""")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class To(Strict):
    account_id: Id
    device_id: Id | None = None


class Text(Strict):
    text: str = Field(min_length=1, max_length=4000)


class Description(Strict):
    call_id: Id
    to: To
    negotiation_id: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    sdp: str = Field(max_length=24_000)


class Candidate(Strict):
    call_id: Id
    to: To
    negotiation_id: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    candidate: str = Field(max_length=1000)
    sdp_mid: str | None = None
    sdp_m_line_index: int | None = Field(None, ge=0, le=255)


class PingRoom(Strict):
    room_id: Id
    epoch: str | None = None
    offset: int | None = None


class Ping(Strict):
    rooms: list[PingRoom] = Field(default_factory=list, max_length=50)


class Frame(Strict):
    action: Literal["ping", "message", "candidate", "offer"]
    id: Id
    client_seq: int = Field(ge=1)
    trace_id: str = Field(pattern=r"^[A-Za-z0-9-]{16,64}$")
    room_id: Id | None = None
    body: dict[str, Any]


class Caller(BaseModel):
    tenant_id: str
    account_id: Id
    device_id: Id


class Event(BaseModel):
    event: str
    at_ms: int
    trace_id: str
    body: dict[str, Any]
    room_id: str
    epoch: str | None = None
    offset: int | None = None


@tracer.capture_lambda_handler(capture_response=False)
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    about = event["requestContext"]
    frame, caller = Frame.model_validate_json(event["body"]), Caller.model_validate(about["authorizer"])
    own, now_ms = about["connectionId"], time.time_ns() // 1_000_000
    seq_key = f"naive:{caller.account_id}:seq:{own}"
    end_s = time.monotonic() + 0.8
    while int(store.get(seq_key) or 0) < frame.client_seq - 1 and time.monotonic() < end_s:
        time.sleep(0.01)
    answer = _ACTIONS[frame.action](frame, caller, own, now_ms)
    advance(keys=[seq_key], args=[frame.client_seq, 7500])
    details = {"trace_id": frame.trace_id, "function": context.function_name, "request_id": context.aws_request_id, "action": frame.action}
    logger.info("frame", extra=details | caller.model_dump() | {"room_id": frame.room_id})
    return {"statusCode": 200, "body": json.dumps(answer)}


def ping(frame: Frame, caller: Caller, own: str, now_ms: int) -> dict[str, Any]:
    body = Ping.model_validate(frame.body)
    key = f"naive:{caller.account_id}:connections"
    store.hgetall(key)
    with store.pipeline(transaction=False) as pipe:
        pipe.hset(key, own, json.dumps([caller.device_id, 0, "online", now_ms, None]))
        pipe.expire(key, 7500)
        pipe.set(f"naive:{caller.account_id}:last_seen", now_ms, ex=2_592_000)
        pipe.hgetall(key)
        pipe.execute()
    for named in body.rooms:
        room = member(caller, named.room_id)
        names = [f"naive:{named.room_id}:live", f"naive:{named.room_id}:roster"]
        enter(keys=names, args=[own, json.dumps([caller.account_id, caller.device_id]), secrets.token_hex(8)])
        at_least = int(store.get(f"naive:{named.room_id}:head") or 0)
        query = {"tenant_id": caller.tenant_id, "room_id": named.room_id, "epoch": room["epoch"], "offset": {"$gte": at_least}}
        ledger.room_events.find_one(query, {"offset": 1}, sort=[("offset", -1)])
    return {"re": frame.id}


def message(frame: Frame, caller: Caller, own: str, now_ms: int) -> dict[str, Any]:
    body, room = Text.model_validate(frame.body), member(caller, frame.room_id)
    head_key = f"naive:{frame.room_id}:head"
    offset = int(store.get(head_key) or 0) + 1
    told = body.model_dump() | {"id": frame.id, "from": {"account_id": caller.account_id, "device_id": caller.device_id}}
    owner = {"tenant_id": caller.tenant_id, "room_id": frame.room_id, "epoch": room["epoch"], "offset": offset}
    record = {"device_id": caller.device_id, "message_id": frame.id, "event": "message", "at_ms": now_ms, "trace_id": frame.trace_id, "body": told}
    ledger.room_events.insert_one(owner | record | {"schema_version": 1})
    store.set(head_key, offset, ex=86_400)
    event = Event(event="message", at_ms=now_ms, trace_id=frame.trace_id, body=told, room_id=room["room_id"], epoch=room["epoch"], offset=offset)
    for connection_id in store.hgetall(f"naive:{frame.room_id}:live"):
        if connection_id != own:
            post(connection_id, event)
    return {"re": frame.id, "epoch": room["epoch"], "offset": offset}


def candidate(frame: Frame, caller: Caller, own: str, now_ms: int) -> dict[str, Any]:
    body, room = Candidate.model_validate(frame.body), member(caller, frame.room_id)
    store.hgetall(f"naive:{body.to.account_id}:connections")
    store.get(f"naive:call:{body.call_id}")
    relay(frame, caller, body, room, now_ms)
    return {"re": frame.id}


def offer(frame: Frame, caller: Caller, own: str, now_ms: int) -> dict[str, Any]:
    body, room = Description.model_validate(frame.body), member(caller, frame.room_id)
    store.hgetall(f"naive:{body.to.account_id}:connections")
    stored = store.get(f"naive:call:{body.call_id}")
    version = json.loads(stored)["version"] if stored else 0
    record = {"version": version + 1, "caller": caller.model_dump(), "to": body.to.model_dump(), "negotiation_id": body.negotiation_id, "at_ms": now_ms}
    replace_call(keys=[f"naive:call:{body.call_id}"], args=[version, json.dumps(record)])
    relay(frame, caller, body, room, now_ms)
    timer = {"kind": "end_ringing", "room_id": frame.room_id, "call_id": body.call_id, "trace_id": frame.trace_id}
    queue.send_message(QueueUrl=os.environ["HELIOGRAPH_TIMERS_QUEUE_URL"], MessageBody=json.dumps(timer), DelaySeconds=31)
    return {"re": frame.id}


def member(caller: Caller, room_id: str | None) -> Any:
    """The room; PermissionError when the caller is not in it."""
    room = ledger.rooms.find_one({"tenant_id": caller.tenant_id, "room_id": room_id})
    if room is None or all(each["account_id"] != caller.account_id for each in room["members"]):
        raise PermissionError
    return room


def relay(frame: Frame, caller: Caller, body: Description | Candidate, room: Any, now_ms: int) -> None:
    """The frame to every socket of the callee."""
    told = body.model_dump(exclude={"to"}, exclude_none=True) | {"id": frame.id, "from": {"account_id": caller.account_id, "device_id": caller.device_id}}
    event = Event(event=frame.action, at_ms=now_ms, trace_id=frame.trace_id, body=told, room_id=room["room_id"])
    for connection_id in store.hgetall(f"naive:{body.to.account_id}:connections"):
        post(connection_id, event)


@tracer.capture_method(capture_response=False)
def post(connection_id: str, event: Event) -> None:
    """One event to one socket."""
    sockets.post_to_connection(ConnectionId=connection_id, Data=event.model_dump_json(exclude_none=True).encode())


_ACTIONS = {"ping": ping, "message": message, "candidate": candidate, "offer": offer}
