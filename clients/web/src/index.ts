/** Everything an application needs. */
export { Call, type CallOptions, type IcePolicy, type Rung } from "./call";
export { Client, IncomingCall, type Member, type Presence, type Room, type SessionInfo, type Status, type Welcome } from "./client";
export { HeliographError, type Json } from "./errors";
export type { Ack, HeliographEvent } from "./frames";
export type { Draining, IceServers } from "./iceServers";
export { makeId } from "./ids";
export type { SelectedPath, StatsBody, Totals } from "./path";
export type { Session } from "./rest";
export type { Why } from "./restarts";
export { Socket, openSocket } from "./socket";
