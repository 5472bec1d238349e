/** The demo page: one visitor, everybody they share a room with, one call at a time. `config.json` beside the page says where the deployment is. */

import { type Call, Client, HeliographError, type IncomingCall, type Presence, type Room } from "../src/index";

interface Config {
  rest_url: string;
  socket_url: string;
  users: { tenant_id: string; login: string; account_id: string }[]; // names to show; whoever is not among them is shown by id
}

const config = (await (await fetch("config.json")).json()) as Config;
const names = new Map(config.users.map((user) => [user.account_id, user.login]));
const client = new Client(config.rest_url, config.socket_url);
const presence = new Map<string, Presence>();
let rooms: Room[] = [];
let room: Room | undefined;
let call: Call | undefined;
let ringing: IncomingCall | undefined;

const at = <T extends HTMLElement = HTMLElement>(id: string): T => document.getElementById(id) as T;
const field = (form: HTMLElement, name: string): HTMLInputElement => form.querySelector(`[name=${name}]`) as HTMLInputElement;
const nameOf = (accountId: unknown): string => names.get(String(accountId)) ?? String(accountId);
const others = (of: Room): string[] => of.members.map((member) => member.account_id).filter((id) => id !== client.session.account_id);

/** Do it, and tell the visitor when it fails. */
async function attempt(work: () => Promise<unknown>): Promise<void> {
  at("notice").hidden = true;
  try {
    await work();
  } catch (error) {
    at("notice").textContent = error instanceof HeliographError ? error.message : String(error);
    at("notice").hidden = false;
  }
  render();
}

function onSubmit(id: string, work: (form: HTMLFormElement) => Promise<unknown>): void {
  const form = at<HTMLFormElement>(id);
  form.onsubmit = (event) => {
    event.preventDefault();
    void attempt(() => work(form));
  };
}

// signing in

at("logins").replaceChildren(...config.users.map((user) => new Option(user.login, user.login)));
field(at("sign-in"), "tenant").value = config.users[0]?.tenant_id ?? "";

onSubmit("sign-in", async (form) => {
  const [tenant, login, password] = ["tenant", "login", "password"].map((name) => field(form, name).value) as [string, string, string];
  await client.signIn(tenant, login, password);
  for (const row of (await client.connect()).presence) presence.set(row.account_id, row);
  names.set(client.session.account_id, login);
  at("me").textContent = `${login} of ${tenant}`;
  field(at("meet"), "account").replaceChildren(
    ...config.users.filter((user) => user.tenant_id === tenant && user.account_id !== client.session.account_id).map((user) => new Option(user.login, user.account_id)),
  );
  at("sign-in").hidden = true;
  at("app").hidden = false;
  await enter();
});

client.on("signed_out", () => {
  at("sign-in").hidden = false;
  at("app").hidden = true;
});

/** Join every room of this account; the newest one is shown. */
async function enter(): Promise<void> {
  rooms = await client.rooms();
  await Promise.all(rooms.map((each) => client.join(each.room_id)));
  for (const row of await client.presence()) presence.set(row.account_id, row);
  room ??= rooms[0];
}

onSubmit("meet", async (form) => {
  const account = field(form, "account").value;
  room = await client.createRoom(`${nameOf(client.session.account_id)} and ${nameOf(account)}`, [account]);
  await enter();
});

client.on("presence", ({ body }) => {
  const row = body as unknown as Presence;
  presence.set(row.account_id, row);
  render();
});

// texts

onSubmit("write", async (form) => {
  if (!room) throw new Error("Open a room first.");
  const input = field(form, "text");
  const ack = await client.sendText(room.room_id, input.value);
  addText(client.session.account_id, `${input.value} `, `#${ack.offset}`);
  input.value = "";
});

client.on("message", ({ body, offset }) => addText((body["from"] as { account_id: string }).account_id, `${String(body["text"])} `, `#${offset}`));

function addText(from: string, text: string, position: string): void {
  const [who, place, item] = [document.createElement("b"), document.createElement("small"), document.createElement("li")];
  who.textContent = nameOf(from);
  place.textContent = position;
  item.append(who, text, place);
  at("texts").append(item);
  item.scrollIntoView({ block: "nearest" });
}

// calls

client.onIncomingCall = (incoming) => {
  if (call || ringing) return void incoming.decline("busy");
  ringing = incoming;
  incoming.onOver = () => {
    ringing = undefined;
    render();
  };
  render();
};

const policy = (): "relay" | "all" => (at<HTMLInputElement>("relay-only").checked ? "relay" : "all");

async function dial(accountId: string): Promise<void> {
  const shared = rooms.find((each) => others(each).includes(accountId));
  if (!shared) throw new Error("Open a room with them first.");
  await talk(await client.call(shared.room_id, accountId, { icePolicy: policy() }));
}

async function talk(begun: Call): Promise<void> {
  call = begun;
  begun.onChange = render;
  at<HTMLAudioElement>("audio").srcObject = begun.remoteStream;
  void begun.ended.then(() => {
    call = undefined;
    void client.setPresence("online").catch(() => undefined);
    render();
  });
  render();
  await begun.connected();
  await client.setPresence("on_a_call");
}

at("answer").onclick = () =>
  void attempt(async () => {
    const incoming = ringing;
    ringing = undefined;
    if (incoming) await talk(await incoming.answer({ icePolicy: policy() }));
  });
at("decline").onclick = () =>
  void attempt(async () => {
    const incoming = ringing;
    ringing = undefined;
    await incoming?.decline();
  });
at("mute").onclick = () => call?.mute(!call.isMuted);
at("hangup").onclick = () => void attempt(async () => call?.hangup());

// showing

function render(): void {
  if (!client.rest.session) return;
  const seen = new Set([...presence.keys(), ...rooms.flatMap(others)]);
  seen.delete(client.session.account_id);
  at("people").replaceChildren(...[...seen].map(person));
  at("room-name").textContent = room?.name ?? "Texts";
  at("call-state").textContent = stateText();
  for (const [id, isShown] of Object.entries({ answer: ringing, decline: ringing, mute: call, hangup: call, figures: call })) at(id).hidden = !isShown;
  at("mute").textContent = call?.isMuted ? "Unmute" : "Mute";
  const rung = call?.rungs.at(-1);
  if (rung) {
    at("rung").textContent = `${rung.rung} ${rung.name}: ${rung.audio.bitrate_bps / 1_000} kbit/s, ${rung.audio.ptime_ms} ms frames, ${rung.action}`;
    at("reason").textContent = rung.reason.rule;
    at("step-up").textContent = rung.reason.to_step_up;
  }
}

function person(accountId: string): HTMLLIElement {
  const [item, who, status, button] = [document.createElement("li"), document.createElement("span"), document.createElement("small"), document.createElement("button")];
  item.dataset["status"] = presence.get(accountId)?.status ?? "offline";
  item.dataset["login"] = who.textContent = nameOf(accountId);
  status.textContent = item.dataset["status"].replaceAll("_", " ");
  button.textContent = "Call";
  button.disabled = call !== undefined || ringing !== undefined;
  button.onclick = () => void attempt(() => dial(accountId));
  item.append(who, status, button);
  return item;
}

function stateText(): string {
  if (ringing) return `${nameOf(ringing.peer.account_id)} is calling`;
  if (!call) return "no call";
  const peer = nameOf(call.peer.account_id);
  return call.state === "connected" ? `talking with ${peer}${call.isMuted ? ", muted" : ""}` : `calling ${peer} …`;
}

/** Once a second: what flows, and where. */
setInterval(() => {
  const current = call;
  if (current?.state !== "connected") return;
  void Promise.all([current.selectedPath(), current.totals()]).then(([path, totals]) => {
    at("path").textContent = path ? `${path.local} to ${path.remote} over ${path.protocol}` : "";
    at("connect-ms").textContent = `${current.connectMs} ms`;
    at("sent").textContent = `${(totals.sentBytes / 1_000).toFixed(1)} kB of audio`;
    at("received").textContent = `${(totals.receivedBytes / 1_000).toFixed(1)} kB of audio, ${totals.receivedPackets} packets`;
  });
}, 1_000);
