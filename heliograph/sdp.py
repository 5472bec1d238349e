"""Session descriptions and ICE candidates as a signaling server passes them on: checked, bounded, and without private addresses.

Knows RFC 8866 (SDP), RFC 8839 (ICE in SDP) and RFC 8829 (JSEP) as far as browsers and aiortc write them; must not know calls, sockets or codecs.
What is not of the form is refused with `SdpInvalid`; what is of the form but unknown is left out, and its name is told to the caller.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Literal

from heliograph.errors import SdpInvalid

Kind = Literal["offer", "answer"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a description may hold at most. Chromium's offer of audio, simulcast video and data has 11,251 bytes, 310 lines and 16 candidates."""

    max_bytes: int = 24_000  # as the frame's shape allows; a frame has 32 KB
    max_lines: int = 1_000
    max_line_bytes: int = 1_000
    max_media: int = 16
    max_candidates: int = 200  # over all media sections: an unbundled offer repeats each for each of them


LIMITS = Limits()
MAX_CANDIDATE_BYTES = 1_000

# RFC 8866 section 5: a parser ignores or rejects a description with a type letter that it does not know. These are known: of them the first row is
# what RFC 8829 section 5.2.1 writes, the second is left out: it names people and places (i u e p), belongs to broadcasts (r z) or holds keys (k).
_PASSED_TYPES = frozenset("vostcbma")
_LEFT_OUT_TYPES = frozenset("iueprzk")

_WORD = r"[!#$%&'*+\-.0-9A-Z^_`a-z{|}~]+"  # RFC 8866 section 9
_WORDS = rf"{_WORD}(?: {_WORD})*"
_REST = "[ -~]*"
_PORT = "[0-9]{1,5}"
_FLAG = ""  # the attribute has no value
_DIRECTIONS = dict.fromkeys(("sendrecv", "sendonly", "recvonly", "inactive"), _FLAG)

# The attributes that Chromium 156, Firefox, Safari and aiortc write, each with the form of its value. No form has two repetitions that could match the same
# character, so none backtracks. Left out on purpose: `crypto` (keys in the clear, RFC 8827 section 6.5), `remote-candidates` and `source-filter` (addresses).
_SESSION_FORMS = _DIRECTIONS | {  # Firefox writes a direction, the fingerprint and the ICE options here
    "extmap-allow-mixed": _FLAG,  # RFC 8285
    "fingerprint": rf"{_WORD} [0-9A-Fa-f]{{2}}(?::[0-9A-Fa-f]{{2}}){{15,63}}",  # RFC 8122
    "group": _WORDS,  # RFC 5888, RFC 9143
    "ice-lite": _FLAG,
    "ice-options": _WORDS,  # RFC 8839 section 5.6
    "ice-pwd": "[A-Za-z0-9+/]{22,256}",  # RFC 8839 section 5.4
    "ice-ufrag": "[A-Za-z0-9+/]{4,256}",
    "identity": _REST,  # RFC 8827
    "msid-semantic": _REST,  # Chromium writes a blank before WMS
    "setup": "actpass|active|passive|holdconn",  # RFC 8842
    "tls-id": "[A-Za-z0-9+/_-]{20,255}",
}
_MEDIA_FORMS = {name: form for name, form in _SESSION_FORMS.items() if name not in ("group", "ice-lite", "msid-semantic")} | {
    "bundle-only": _FLAG,
    "cryptex": _FLAG,  # RFC 9335
    "end-of-candidates": _FLAG,
    "extmap": rf"{_PORT}(?:/[a-z]{{8}})? [!-~]+(?: {_REST})?",
    "fmtp": rf"[!-~]+ [!-~]{_REST}",
    "framerate": "[0-9.]{1,10}",
    "imageattr": _REST,  # Firefox
    "max-message-size": "[0-9]{1,19}",
    "maxptime": "[0-9]{1,5}",
    "mid": _WORD,
    "msid": "[!-~]+(?: [!-~]+)?",
    "packetization": _REST,  # Chromium, raw video
    "ptime": "[0-9]{1,5}",
    "remote-net-estimate": _FLAG,  # Chromium
    "rid": rf"[A-Za-z0-9_-]+ (?:send|recv)(?: {_REST})?",  # RFC 8851
    "rtcp-fb": rf"(?:\*|[0-9]{{1,3}}) [!-~]{_REST}",
    "rtcp-mux": _FLAG,
    "rtcp-mux-only": _FLAG,
    "rtcp-rsize": _FLAG,
    "rtcp-xr": _REST,
    "rtpmap": rf"[0-9]{{1,3}} {_WORD}/[0-9]{{1,10}}(?:/{_WORD})?",
    "sctp-init": _REST,  # Chromium
    "sctp-port": _PORT,
    "sctpmap": rf"{_PORT} [!-~]{_REST}",
    "simulcast": _REST,  # RFC 8853
    "ssrc": rf"[0-9]{{1,10}} [!-~]{_REST}",
    "ssrc-group": "[A-Z-]+(?: [0-9]{1,10})*",
    "x-google-flag": _REST,
}
_SESSION = {name: re.compile(form).fullmatch for name, form in _SESSION_FORMS.items()}
_MEDIA = {name: re.compile(form).fullmatch for name, form in _MEDIA_FORMS.items()}
_ADDRESSES = frozenset({"candidate", "rtcp"})  # media attributes with addresses: read by functions of their own

_NAME = re.compile(_WORD).fullmatch
_TIMING = re.compile("[0-9]{1,20} [0-9]{1,20}").fullmatch
_BANDWIDTH = re.compile(rf"({_WORD}):[0-9]{{1,12}}").fullmatch
_BANDWIDTHS = frozenset({"AS", "TIAS", "CT", "RS", "RR"})
_ORIGIN = re.compile("[!-~]+ [0-9]{1,20} [0-9]{1,20} IN IP[46] ([!-~]+)").fullmatch
_CONNECTION = re.compile("IN IP[46] ([!-~]+)").fullmatch
_RTCP = re.compile(rf"({_PORT})(?: IN IP[46] ([!-~]+))?").fullmatch
_MEDIA_LINE = re.compile(rf"([a-z]+) ({_PORT}) ([A-Z/]+) ([!-~]+(?: [!-~]+)*)").fullmatch
_KINDS = frozenset({"audio", "video", "application", "text", "message", "image"})  # RFC 8866 section 5.14
# RFC 8829 section 5.1.2: what to write, and what to accept all the same; every one of them runs over DTLS here, a fingerprint is required.
_PROFILES = frozenset({"UDP/TLS/RTP/SAVPF", "TCP/DTLS/RTP/SAVPF", "UDP/TLS/RTP/SAVP", "TCP/DTLS/RTP/SAVP", "RTP/SAVPF", "RTP/SAVP", "RTP/AVPF", "RTP/AVP"})
_DATA_PROFILES = frozenset({"UDP/DTLS/SCTP", "TCP/DTLS/SCTP", "DTLS/SCTP"})
_SECRETS = frozenset({"ice-ufrag", "ice-pwd", "fingerprint"})

_NOWHERE = "IN IP4 0.0.0.0"
_NOWHERE_PORT = "9"


@dataclass(slots=True)
class _Part:
    """The session part, or one media section, as far as it was read."""

    at: int  # where its first line stands in the output
    is_rejected: bool = False
    mid: str | None = None
    has: set[str] = field(default_factory=set)
    is_hidden: bool | None = None  # its c= line was rewritten; None without one
    is_open_setup: bool = False


def check_description(sdp: str, kind: Kind, *, allow_private: bool, limits: Limits = LIMITS, dropped: set[str] | None = None) -> str:
    """The SDP to pass on: lines end with CRLF, unknown attributes and (unless allowed) private addresses are gone.

    A description that holds neither comes back byte for byte. `dropped`, when given, receives the names of what was left out:
    `a=name`, `k=`, `b=X-name`, `candidate name` (an extension), `candidate host` (candidates of a type, hidden or unknown). The client chose these names.
    Raises SdpInvalid; its sentence names the line, never its content.
    """
    reader = _Reader(kind, allow_private, limits, set() if dropped is None else dropped)
    for number, line in enumerate(_lines(sdp, limits), 1):
        try:
            reader.take(number, line)
        except SdpInvalid as error:
            raise SdpInvalid(f"Line {number} of the SDP: {error.message}") from None
    return reader.finish()


def check_candidate(line: str, *, allow_private: bool, max_bytes: int = MAX_CANDIDATE_BYTES, dropped: set[str] | None = None) -> str | None:
    """The candidate to pass on, in the form it came in (`candidate:…` or without the name); None when it must not be passed on.

    The empty string, the end of candidates, passes. Raises SdpInvalid.
    """
    if len(line) > max_bytes:
        raise SdpInvalid(f"The candidate has more than {max_bytes} characters.")
    if not line:
        return line
    prefix = "candidate:" if line.startswith("candidate:") else ""
    try:
        kept = _candidate(line[len(prefix) :], allow_private, set() if dropped is None else dropped)
    except SdpInvalid as error:
        raise SdpInvalid(error.message[0].upper() + error.message[1:]) from None
    return None if kept is None else prefix + kept


def _lines(sdp: str, limits: Limits) -> Iterator[str]:
    """The lines without their ends. RFC 8866 section 5: CRLF; a single LF is accepted.

    Only printable ASCII passes: other line ends (VT, NEL, U+2028) would start a new line in a parser that uses `splitlines`.
    """
    if len(sdp) > limits.max_bytes:
        raise SdpInvalid(f"The SDP has more than {limits.max_bytes} characters.")
    if not sdp.isascii():
        raise SdpInvalid("The SDP holds a character that is not printable ASCII.")
    lines = sdp.replace("\r\n", "\n").removesuffix("\n").split("\n")
    if len(lines) > limits.max_lines:
        raise SdpInvalid(f"The SDP has more than {limits.max_lines} lines.")
    return iter(lines)


class _Reader:
    """Reads a description line by line and writes what may be passed on."""

    def __init__(self, kind: Kind, allow_private: bool, limits: Limits, dropped: set[str]) -> None:
        self.kind, self.allow_private, self.limits, self.dropped = kind, allow_private, limits, dropped
        self.out: list[str] = []
        self.session = self.part = _Part(0)
        self.media: list[_Part] = []
        self.bundles: list[frozenset[str]] = []
        self.candidates = 0
        self.is_timed = False
        self.forms = _SESSION

    def take(self, number: int, line: str) -> None:
        if len(line) > self.limits.max_line_bytes:
            raise SdpInvalid(f"it has more than {self.limits.max_line_bytes} characters.")
        if line[1:2] != "=" or not line.isprintable():
            raise SdpInvalid("it is not a letter, an equals sign and printable ASCII.")
        letter, value = line[0], line[2:]
        if number <= 3 and letter != "vos"[number - 1]:  # RFC 8866 section 5: these three in this order
            raise SdpInvalid(f"it must be {'vos'[number - 1]}=.")
        if letter == "a":
            self.attribute(line, value)
        elif letter in _PASSED_TYPES:
            _LINES[letter](self, number, line, value)
        elif letter in _LEFT_OUT_TYPES:
            self.dropped.add(f"{letter}=")
        else:
            raise SdpInvalid("SDP has no lines of this type.")

    def version(self, number: int, line: str, value: str) -> None:
        if number != 1 or value != "0":
            raise SdpInvalid("the version is 0, and stands first.")
        self.out.append(line)

    def origin(self, number: int, line: str, value: str) -> None:
        match = _ORIGIN(value)
        if number != 2 or match is None:
            raise SdpInvalid("o= holds a user name, two numbers and an address, and stands second.")
        # RFC 8829 section 5.2.1 writes an address without meaning; 127.0.0.1 is Chromium's, 0.0.0.0 the others'.
        if match[1] not in ("127.0.0.1", "0.0.0.0") and self.is_hidden(match[1]):
            line = f"o={value.rsplit(' ', 3)[0]} {_NOWHERE}"
        self.out.append(line)

    def name(self, number: int, line: str, value: str) -> None:
        if number != 3 or not value:
            raise SdpInvalid("s= is not empty, and stands third.")
        self.out.append(line)

    def timing(self, number: int, line: str, value: str) -> None:
        if self.media or not _TIMING(value):
            raise SdpInvalid("t= holds two numbers, and stands before the media.")
        self.is_timed = True
        self.out.append(line)

    def connection(self, number: int, line: str, value: str) -> None:
        match = _CONNECTION(value)
        if match is None:
            raise SdpInvalid("c= holds IN, IP4 or IP6 and an address.")
        self.part.is_hidden = self.is_hidden(match[1])
        self.out.append(f"c={_NOWHERE}" if self.part.is_hidden else line)

    def bandwidth(self, number: int, line: str, value: str) -> None:
        match = _BANDWIDTH(value)
        if match is None:
            raise SdpInvalid("b= holds a name and a number.")
        if match[1] in _BANDWIDTHS:
            self.out.append(line)
        else:
            self.dropped.add(f"b={match[1]}")

    def medium(self, number: int, line: str, value: str) -> None:
        match = _MEDIA_LINE(value)
        if match is None or match[1] not in _KINDS or int(match[2]) > 65535:
            raise SdpInvalid("m= holds a kind of media, a port, a profile and formats.")
        is_rtp = match[3] in _PROFILES
        if not (is_rtp or match[3] in _DATA_PROFILES):
            raise SdpInvalid("its transport is none that WebRTC uses.")
        if is_rtp and not all(_is_payload_type(item) for item in match[4].split(" ")):
            raise SdpInvalid("a payload type is a number up to 127, and 72 to 76 are RTCP's.")
        if len(self.media) == self.limits.max_media:
            raise SdpInvalid(f"there are more than {self.limits.max_media} media sections.")
        self.part = _Part(len(self.out), is_rejected=match[2] == "0")
        self.media.append(self.part)
        self.forms = _MEDIA
        self.out.append(line)

    def attribute(self, line: str, value: str) -> None:
        name, colon, text = value.partition(":")
        form = self.forms.get(name)
        if form is not None:
            if form(text) is None or (colon and not text):
                raise SdpInvalid(f"{name} is not of its form.")
            if name in _NOTED:
                self.note(name, text)
            self.out.append(line)
        elif name in _ADDRESSES and self.media:
            if name == "candidate":
                self.candidate(text)
            else:
                self.rtcp(line, text)
        elif _NAME(name):
            self.dropped.add(f"a={name}")
        else:
            raise SdpInvalid("the attribute has no name.")

    def note(self, name: str, text: str) -> None:
        """Remembers what `finish` compares."""
        part = self.part
        if name in _SECRETS:
            part.has.add(name)
        elif name == "mid":
            if part.mid is not None or any(other.mid == text for other in self.media):
                raise SdpInvalid("a mid is given twice.")
            part.mid = text
        elif name == "group" and text.startswith("BUNDLE "):
            self.bundles.append(frozenset(text.split(" ")[1:]))
        elif name == "setup":
            part.is_open_setup = text == "actpass"
        elif name == "bundle-only":
            part.is_rejected = False  # RFC 9143 section 6: its port is 0 and it is not rejected

    def candidate(self, text: str) -> None:
        self.candidates += 1
        if self.candidates > self.limits.max_candidates:
            raise SdpInvalid(f"there are more than {self.limits.max_candidates} candidates.")
        kept = _candidate(text, self.allow_private, self.dropped)
        if kept is not None:
            self.out.append(f"a=candidate:{kept}")

    def rtcp(self, line: str, text: str) -> None:
        match = _RTCP(text)
        if match is None or int(match[1]) > 65535:
            raise SdpInvalid("rtcp holds a port and may hold an address.")
        if match[2] is not None and match[2] != "0.0.0.0" and self.is_hidden(match[2]):
            line = f"a=rtcp:{_NOWHERE_PORT} {_NOWHERE}"
        self.out.append(line)

    def is_hidden(self, address: str) -> bool:
        """Whether a c=, o= or rtcp address must be rewritten; addresses without meaning stay."""
        reach = _reach(address)
        return not self.allow_private and reach in ("private", "name") and address not in ("0.0.0.0", "::")

    def finish(self) -> str:
        if len(self.out) < 3 or not self.is_timed:
            raise SdpInvalid("The SDP lacks one of v=, o=, s= and t=.")
        known = {part.mid for part in self.media}
        if not all(bundle <= known for bundle in self.bundles):
            raise SdpInvalid("The SDP bundles a mid that no media section has.")
        for part in self.media:
            if not part.is_rejected:
                self.check_secrets(part)
                if self.kind == "answer" and part.is_open_setup:
                    raise SdpInvalid("An answer must choose its setup: active or passive.")  # RFC 8842 section 5.3
            if self.session.is_hidden if part.is_hidden is None else part.is_hidden:
                self.out[part.at] = _with_no_port(self.out[part.at])
        return "\r\n".join(self.out) + "\r\n"

    def check_secrets(self, part: _Part) -> None:
        """RFC 8829 section 5.8: ICE credentials and a fingerprint are the session's, the section's own, or those of its bundle."""
        shared = [part, *(other for bundle in self.bundles if part.mid in bundle for other in self.media if other.mid in bundle)]
        if not any(self.session.has | other.has >= _SECRETS for other in shared):
            raise SdpInvalid("A media section of the SDP lacks ice-ufrag, ice-pwd or fingerprint.")


_NOTED = _SECRETS | {"mid", "group", "setup", "bundle-only"}
_LINES: dict[str, Callable[[_Reader, int, str, str], None]] = {
    "v": _Reader.version,
    "o": _Reader.origin,
    "s": _Reader.name,
    "t": _Reader.timing,
    "c": _Reader.connection,
    "b": _Reader.bandwidth,
    "m": _Reader.medium,
}


def _is_payload_type(text: str) -> bool:
    return text.isdigit() and len(text) <= 3 and int(text) <= 127 and not 72 <= int(text) <= 76  # RFC 5761 section 4


def _with_no_port(line: str) -> str:
    """RFC 8839 section 4.3.1: a default destination of 0.0.0.0 goes with port 9; any other port would be an ICE mismatch. 0 stays: it is a rejection."""
    kind, port, rest = line.split(" ", 2)
    return line if port == "0" else f"{kind} {_NOWHERE_PORT} {rest}"


# Candidates, RFC 8839 section 5.1

_CANDIDATE = re.compile(rf"[A-Za-z0-9+/]{{1,32}} ([0-9]{{1,3}}) ({_WORD}) ([0-9]{{1,10}}) ([!-~]+) ([0-9]{{1,5}}) typ ({_WORD})((?: [!-~]+ [!-~]+)*)").fullmatch
_TRANSPORTS = frozenset({"udp", "tcp", "ssltcp"})
_TYPES = frozenset({"host", "srflx", "prflx", "relay"})
_EXTENSIONS = {
    "raddr": re.compile("[!-~]+").fullmatch,
    "rport": re.compile(_PORT).fullmatch,
    "tcptype": re.compile("active|passive|so").fullmatch,  # RFC 6544
    "generation": re.compile("[0-9]{1,10}").fullmatch,  # Chromium and Safari, as the next three
    "ufrag": re.compile("[A-Za-z0-9+/]{4,256}").fullmatch,
    "network-id": re.compile("[0-9]{1,5}").fullmatch,
    "network-cost": re.compile("[0-9]{1,5}").fullmatch,
}


def _candidate(text: str, allow_private: bool, dropped: set[str]) -> str | None:
    """The value of a candidate attribute as passed on, or None. Raises SdpInvalid."""
    text = text.rstrip(" ")
    match = _CANDIDATE(text)
    if match is None:
        raise SdpInvalid("a candidate has a foundation, component, transport, priority, address, port and type.")
    component, transport, priority, address, port, kind, extensions = match.groups()
    if not (1 <= int(component) <= 256 and 1 <= int(priority) < 2**31 and int(port) <= 65535):
        raise SdpInvalid("a candidate's component, priority or port is out of range.")
    reach = _reach(address)
    if kind not in _TYPES or transport.lower() not in _TRANSPORTS:  # section 4.2.1.2: an agent ignores what it does not support
        dropped.add(f"candidate {kind}")
        return None
    is_hidden = reach in ("private", "name") or (reach == "mdns" and kind != "host")
    if is_hidden and not allow_private:
        dropped.add(f"candidate {kind}")
        return None
    head = text[: match.start(7)]
    return head + "".join(_extensions(extensions.split(" ")[1:], kind, ":" in address, allow_private, dropped))


def _extensions(words: list[str], kind: str, is_v6: bool, allow_private: bool, dropped: set[str]) -> Iterator[str]:
    """The name/value pairs to pass on. A related address that is kept back is written as zeros of the candidate's own family, its port as 0."""
    for name, value in zip(words[::2], words[1::2], strict=True):
        form = _EXTENSIONS.get(name)
        if form is None or (kind == "host" and name in ("raddr", "rport")):  # a host candidate has no related address
            dropped.add(f"candidate {name}" if _NAME(name) else "candidate")
            continue
        if form(value) is None or (name == "rport" and int(value) > 65535):
            raise SdpInvalid(f"a candidate's {name} is not of its form.")
        if name == "raddr":
            _reach(value)
            value = value if allow_private else "::" if is_v6 else "0.0.0.0"
        elif name == "rport" and not allow_private:
            value = "0"
        yield f" {name} {value}"


# Addresses

Reach = Literal["public", "private", "mdns", "name"]


def _ranges(*networks: str) -> tuple[tuple[int, int], ...]:
    return tuple((int(n.network_address), int(n.broadcast_address)) for n in map(ip_network, networks))


# Listed here because ipaddress.is_private changes between Python releases. Besides RFC 1918: this network, shared (RFC 6598), loopback, link-local,
# 464XLAT's 192.0.0.0/24, benchmarks, and all that is no unicast address.
_PRIVATE_V4 = _ranges(
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15"),
    "224.0.0.0/3",
)
# Unspecified and loopback (with the deprecated IPv4-compatible block), local NAT64, unique local, link-local, site-local, multicast.
_PRIVATE_V6 = _ranges("::/96", "64:ff9b:1::/48", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8")
_MAPPED, _NAT64, _SIX_TO_FOUR = 0xFFFF, 0x64FF9B << 64, 0x2002
_HOST_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*").fullmatch


def _reach(address: str) -> Reach:
    """Who could use an address. A host name with one dot that ends in `.local` is a browser's mDNS name (draft-ietf-mmusic-mdns-ice-candidates)."""
    if "%" in address:
        raise SdpInvalid("an address has no zone.")
    try:
        return "private" if _is_private(ip_address(address)) else "public"
    except ValueError:
        pass
    if len(address) > 253 or not _HOST_NAME(address) or address.rpartition(".")[2].isdigit():  # 127.1 is an address to some resolvers
        raise SdpInvalid("an address is neither IPv4, IPv6 nor a host name.")
    return "mdns" if address.lower().endswith(".local") and address.count(".") == 1 else "name"


def _is_private(ip: IPv4Address | IPv6Address) -> bool:
    """Whether the address, or the IPv4 address within it, belongs to a private network."""
    number = int(ip)
    if ip.version == 4:
        return any(first <= number <= last for first, last in _PRIVATE_V4)
    if number >> 32 == _MAPPED or number >> 32 == _NAT64:
        return _is_private(IPv4Address(number & 0xFFFFFFFF))
    if number >> 112 == _SIX_TO_FOUR:
        return _is_private(IPv4Address(number >> 80 & 0xFFFFFFFF))
    return any(first <= number <= last for first, last in _PRIVATE_V6)
