"""What CloudFront says of a caller: the address without its port, the secret compared as a whole."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.origin import is_one_of, viewer_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("198.51.100.10:46532", "198.51.100.10"),
        ("2001:db8::7:46532", "2001:db8::7"),
        ("2001:0db8:85a3:0000:0000:8a2e:0370:7334:443", "2001:db8:85a3::8a2e:370:7334"),
        ("::1:443", "::1"),
        ("[2001:db8::7]:443", "2001:db8::7"),
        ("198.51.100.10:0", "198.51.100.10"),
    ],
)
def test_the_port_is_taken_off_an_address_of_either_kind(text: str, address: str) -> None:
    assert viewer_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "198.51.100.10",
        "198.51.100.10:",
        "198.51.100.10:65536",
        "198.51.100.10:-1",
        "198.51.100.10:٤٤٣",
        "198.51.100.10:443, 203.0.113.7:443",
        "198.51.100.010:443",
        "2001:db8:85a3:0:0:8a2e:370:7334",
        "fe80::1%eth0:443",
        "example.com:443",
        "[198.51.100.10:443",
        "198.51.100.10:443\n",
        "198.51.100.10:" + "4" * 5_000,
    ],
)
def test_what_has_another_form_is_no_address(text: str) -> None:
    assert viewer_address(text) is None
    assert viewer_address("198.51.100.10:443") == "198.51.100.10"


@given(st.one_of(st.text(max_size=80), st.from_regex(r"[0-9a-f:.\[\]%]{0,70}", fullmatch=True)))
def test_any_text_is_an_address_in_its_shortest_form_or_none(text: str) -> None:
    found = viewer_address(text)
    assert found is None or found == str(ip_address(found))


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)), st.integers(0, 65_535))
def test_every_address_with_a_port_is_found(address: IPv4Address | IPv6Address, port: int) -> None:
    assert viewer_address(f"{address}:{port}") == str(address)


def test_a_secret_is_one_of_the_accepted_as_a_whole_and_an_empty_one_is_none() -> None:
    assert is_one_of("new", ["new", "old"])
    assert is_one_of("old", ["new", "old"])
    for wrong in ("", "ne", "new ", "NEW", "new,old", "\udc80", "é"):
        assert not is_one_of(wrong, ["new", "old", ""]), wrong
    assert not is_one_of("new", [])
