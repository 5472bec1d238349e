"""Chromium and Firefox, relay-only, against our relay over every way in: two peer connections of one page, each with an allocation of its own.

Neither asks for an address family, so a relay of both gives IPv4 (RFC 8656 s7.2), to whom reaches it over IPv6 too. Firefox takes `turns` by name only.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright import async_api

from heliograph.ice import TurnSecrets, turn_password, turn_username
from media_fleet.relay import Relay, RelayConfig
from media_fleet.turn import shared_secrets
from tests.certificates import trust
from tests.integration import firefox, relay_call
from tests.integration.conftest import Relays
from tests.integration.relay_call import MICROPHONE, TONE, crossed, expression
from tests.running import program

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.browser]
V4, V6 = "127.0.0.1", "::1"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def in_chromium(relays: Relays, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[async_api.Page]:
    home = tmp_path_factory.mktemp("chromium")
    trust(home / ".pki/nssdb", relays.dual.authority)
    arguments = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
    environment: dict[str, str | float | bool] = {**os.environ, "HOME": str(home)}
    async with async_api.async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program("chromium"), args=arguments, env=environment)
        yield await browser.new_page()
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def in_firefox(relays: Relays, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[firefox.Page]:
    async with firefox.firefox(tmp_path_factory.mktemp("firefox"), relays.dual.authority) as page:
        yield page


@pytest.mark.parametrize("host", [V4, V6])
@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
async def test_chromium_hears_itself_through_a_relay_of_both_families(in_chromium: async_api.Page, relays: Relays, transport: str, host: str) -> None:
    crossed(await in_chromium.evaluate(expression(relays.dual.ice_server(transport, host), TONE)), transport, V4)


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
async def test_chromium_hears_itself_between_relayed_addresses_of_ipv6(in_chromium: async_api.Page, relays: Relays, transport: str) -> None:
    crossed(await in_chromium.evaluate(expression(relays.only_v6.ice_server(transport, V6), TONE)), transport, V6)


async def test_chromium_refuses_turns_whose_authority_is_not_in_its_store_and_takes_that_relay_over_tcp(in_chromium: async_api.Page, relays: Relays) -> None:
    relay_call.refused(await in_chromium.evaluate(expression(relays.distrusted.ice_server("tls", V4), TONE)), 701)
    crossed(await in_chromium.evaluate(expression(relays.distrusted.ice_server("tcp", V4), TONE)), "tcp", V4)


async def test_chromium_with_time_limited_credentials_hears_itself_and_with_a_wrong_password_has_no_candidate(in_chromium: async_api.Page) -> None:
    """Without an allowed CIDR: the relay's own relayed addresses are peers by themselves."""
    realm, username = "heliograph", turn_username(time.time_ns() // 10**9 + 600, "acc_1", "dev_1")
    async with Relay(RelayConfig(realm=realm, credentials=shared_secrets(lambda: TurnSecrets("north"), realm), listen=((V4, 0),))) as relay:
        server = {"urls": f"turn:{V4}:{relay.address[1]}?transport=udp", "username": username, "credential": turn_password("north", username)}
        crossed(await in_chromium.evaluate(expression(server, TONE)), "udp", V4)
        usages = relay.allocations()
        relay_call.refused(await in_chromium.evaluate(expression({**server, "credential": turn_password("south", username)}, TONE)), 401)
    assert {usage["account_id"] for usage in usages} == {"acc_1"}
    assert all(usage["from_client_packets"] and usage["to_client_packets"] for usage in usages)


@pytest.mark.parametrize(("transport", "host"), [("udp", V4), ("udp", V6), ("tcp", V4), ("tcp", V6), ("tls", "localhost")])
async def test_firefox_hears_itself_through_a_relay_of_both_families(in_firefox: firefox.Page, relays: Relays, transport: str, host: str) -> None:
    crossed(await in_firefox.evaluate(expression(relays.dual.ice_server(transport, host), MICROPHONE)), transport, V4)


@pytest.mark.parametrize(("transport", "host"), [("udp", V6), ("tcp", V6), ("tls", "localhost")])
async def test_firefox_hears_itself_between_relayed_addresses_of_ipv6(in_firefox: firefox.Page, relays: Relays, transport: str, host: str) -> None:
    crossed(await in_firefox.evaluate(expression(relays.only_v6.ice_server(transport, host), MICROPHONE)), transport, V6)


async def test_firefox_refuses_turns_whose_authority_is_not_in_its_store_and_takes_that_relay_over_tcp(in_firefox: firefox.Page, relays: Relays) -> None:
    relay_call.refused(await in_firefox.evaluate(expression(relays.distrusted.ice_server("tls", "localhost"), MICROPHONE)), 701)
    crossed(await in_firefox.evaluate(expression(relays.distrusted.ice_server("tcp", V4), MICROPHONE)), "tcp", V4)
