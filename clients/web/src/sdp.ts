/**
 * What a peer's description asks our Opus encoder for (RFC 7587 7.1, RFC 8866 6.4). Pure.
 * Browsers have no control for frame duration, channels, FEC and DTX; they obey the remote description, which may be applied anew without telling the peer.
 */

export interface AudioProfile {
  bitrate_bps: number;
  channels: number;
  ptime_ms: number;
  fec: boolean;
  loss_percent: number;
  dtx: boolean;
}

/** The remote description as if the peer had asked for this profile; unchanged when it has no Opus. */
export function asking(sdp: string, audio: AudioProfile): string {
  const end = sdp.endsWith("\r\n") ? "\r\n" : "";
  return sdp
    .slice(0, sdp.length - end.length)
    .split(/\r\n(?=m=)/)
    .map((section) => (section.startsWith("m=audio") ? askingSection(section, audio) : section))
    .join("\r\n")
    .concat(end);
}

function askingSection(section: string, audio: AudioProfile): string {
  const payloadType = /^a=rtpmap:(\d+) opus\/48000/im.exec(section)?.[1];
  if (payloadType === undefined) return section;
  const fmtp = `a=fmtp:${payloadType} `;
  const lines = section.split("\r\n").filter((line) => !/^a=(ptime|maxptime):/.test(line));
  const asked = new Map(lines.filter((line) => line.startsWith(fmtp)).flatMap((line) => line.slice(fmtp.length).split(";").map(parameter)));
  asked.set("stereo", audio.channels === 2 ? "1" : "0").set("useinbandfec", audio.fec ? "1" : "0").set("usedtx", audio.dtx ? "1" : "0");
  const others = lines.filter((line) => !line.startsWith(fmtp));
  const [at, joined] = [others.findIndex((line) => line.startsWith(`a=rtpmap:${payloadType} `)), [...asked].map(([name, value]) => `${name}=${value}`).join(";")];
  others.splice(at + 1, 0, fmtp + joined, `a=ptime:${audio.ptime_ms}`, "a=maxptime:120");
  return others.join("\r\n");
}

function parameter(text: string): [string, string] {
  const [name = "", value = ""] = text.trim().split("=");
  return [name, value];
}

/** Equal for profiles that need no new description: the bitrate is set on the sender. */
export function describedPart(audio: AudioProfile): string {
  return [audio.ptime_ms, audio.channels, audio.fec, audio.dtx].join();
}

/** Whether a candidate belongs to the ICE credentials of this description; one without a `ufrag` (it is browsers that write it) does. */
export function isOf(candidate: string, sdp: string): boolean {
  const ufrag = / ufrag (\S+)/.exec(candidate)?.[1];
  return ufrag === undefined || sdp.split("\r\n").includes(`a=ice-ufrag:${ufrag}`);
}

/** The ICE credentials of a description; those of its first section, as all are bundled. */
export function ufragOf(sdp: string): string | undefined {
  return /^a=ice-ufrag:(\S+)/m.exec(sdp)?.[1];
}
