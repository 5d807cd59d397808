"""The console in a real browser, over the real gateway and server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from client import OrderClient, OrderSpec, OrderStatus, Side
from engine.settings import Settings
from tests.e2e.browser import CHROMIUM, Page, browser
from tests.serving import ATTEMPT, Worker, address, gateway, order_server, with_grpc_port

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install -y chromium")

STEPS = "[...document.querySelectorAll('.steps li.done, .steps li.confirmed')].map(li => li.firstChild.data)"
BADGE = "document.querySelector('.timeline .badge')?.textContent"


@pytest.fixture
async def served(settings: Settings, free_port: Callable[[], int]) -> AsyncIterator[tuple[Settings, str]]:
    settings = with_grpc_port(settings, free_port)
    async with order_server(settings), gateway(settings) as (base, _):
        yield settings, base


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    async with browser() as page:
        yield page
    assert page.complaints == []


async def fill(page: Page, name: str, value: str) -> None:
    await page.run(
        f"(() => {{ const input = document.querySelector('[name={name}]'); input.value = '{value}';"
        " input.dispatchEvent(new Event('input', {bubbles: true})) })()"
    )


async def press(page: Page, selector: str) -> None:
    await page.run(f"document.querySelector('{selector}').click()")


async def test_an_order_is_submitted_followed_and_listed(served: tuple[Settings, str], page: Page) -> None:
    settings, base = served
    await page.open(f"http://{base}/")
    await page.until("document.querySelector('#health').textContent === 'ready'")
    await press(page, "[value=buy]")
    await fill(page, "amount", "10")
    await press(page, "#submit")
    await page.until(f"{BADGE} === 'pending'")
    async with OrderClient(address(settings)) as client, Worker(settings) as worker:
        (order,) = [order async for order in client.list()]
        assert (order.spec.side, order.spec.amount) == (Side.BUY, "10")
        facts = await worker.facts(order.order_id)
        await worker.move(order.order_id, *facts[:2])
        await page.until(f"{BADGE} === 'building'")
        assert await page.run(STEPS) == ["pending", "routing", "building"]
        await worker.move(order.order_id, *facts[2:])
    await page.until(f"{BADGE} === 'confirmed'")
    assert await page.run(STEPS) == ["pending", "routing", "building", "submitted", "confirmed"]
    facts_shown = await page.run("document.querySelector('.timeline .facts').textContent")
    assert "Raydium" in facts_shown
    assert ATTEMPT.tx_hash[:4] in facts_shown
    await page.until("document.querySelector('#orders .badge')?.textContent === 'confirmed'")
    # A reload remembers the session's orders and follows them from the first event.
    await page.open(f"http://{base}/")
    await page.until(f"{BADGE} === 'confirmed'")
    # All of it offline: nothing but the gateway was asked.
    assert {url.split("/")[2] for url in page.requests} == {base}


async def test_wrong_fields_are_told_beside_them(served: tuple[Settings, str], page: Page) -> None:
    _, base = served
    await page.open(f"http://{base}/")
    await fill(page, "amount", "<b>1</b>")
    await fill(page, "outputToken", "NOPE")
    await press(page, "#submit")
    # What the server answers is text on the page, never HTML.
    await page.until("document.querySelector('[data-error=amount]').textContent.includes('<b>1</b>')")
    assert await page.run("document.querySelector('[name=outputToken]').ariaInvalid") == "true"
    assert await page.run("document.querySelectorAll('main b').length") == 0


async def test_a_pending_order_is_cancelled_from_the_list(served: tuple[Settings, str], page: Page) -> None:
    settings, base = served
    async with OrderClient(address(settings)) as client:
        order = await client.submit(OrderSpec(Side.SELL, "1", "SOL", "USDC"))
        await page.open(f"http://{base}/")
        await page.until("document.querySelector('#orders button') !== null")
        await press(page, "#orders button")
        await page.until("document.querySelector('#orders .badge')?.textContent === 'cancelled'")
        assert (await client.get(order.order_id)).order.status is OrderStatus.CANCELLED


async def test_the_documentation_shows_every_endpoint_offline(
    served: tuple[Settings, str], page: Page
) -> None:
    _, base = served
    await page.open(f"http://{base}/docs")
    shown = "[...document.querySelectorAll('.opblock-summary-path')].map(node => node.dataset.path)"
    await page.until(f"{shown}.length === 6")
    assert set(await page.run(shown)) == {
        "/api/orders/execute",
        "/api/orders",
        "/api/orders/{orderId}",
        "/api/orders/{orderId}/cancel",
        "/api/orders/{orderId}/ws",
        "/api/quote",
    }
    assert {url.split("/")[2] for url in page.requests if not url.startswith("data:")} == {base}


async def test_nothing_is_wider_than_a_phone(served: tuple[Settings, str], page: Page) -> None:
    settings, base = served
    async with OrderClient(address(settings)) as client:
        await client.submit(OrderSpec(Side.SELL, "1", "SOL", "USDC"))
    await page.command(
        "Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True
    )
    await page.open(f"http://{base}/")
    await press(page, "#submit")
    await page.until(f"{BADGE} === 'pending'")
    await page.until("document.querySelectorAll('#orders tr').length === 2")
    assert await page.run("document.documentElement.scrollWidth") == 390
