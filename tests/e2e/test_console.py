"""The console in a real browser, over the real gateway and server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from client import OrderClient, OrderSpec, OrderStatus, OrderType, Side
from engine.domain.lifecycle import Claimed, Unmet
from engine.settings import Settings
from tests.e2e.browser import CHROMIUM, Page, browser
from tests.serving import ATTEMPT, Worker, address, decision, gateway, order_server, with_grpc_port

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install -y chromium")

MINT = "7xKXtg2CW87d97TXJSDpbD5jBkheTqA83TZRuJosgAsU"
STEPS = "[...document.querySelectorAll('.steps li.done, .steps li.confirmed')].map(li => li.firstChild.data)"
FIELDS = "[...document.querySelectorAll('#order-form .field:not([hidden]) input')].map(input => input.name)"
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
    # All of it offline: nothing but the gateway was asked. (The browser's own icons are in data: addresses.)
    assert {url.split("/")[2] for url in page.requests if not url.startswith("data:")} == {base}


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
    # Once a field is changed, what was wrong with it is not said any more; of the others it still is.
    told = "[...document.querySelectorAll('[data-error]')].filter(note => note.textContent)"
    wrong = f"{told}.map(note => note.dataset.error)"
    assert await page.run(wrong) == ["amount", "outputToken"]
    await fill(page, "amount", "1")
    assert await page.run(wrong) == ["outputToken"]
    assert await page.run("document.querySelector('[name=amount]').ariaInvalid") == "false"
    await press(page, "#swap")
    assert await page.run(wrong) == []


async def test_what_was_wrong_with_the_form_is_not_said_of_a_changed_one(
    served: tuple[Settings, str], page: Page
) -> None:
    _, base = served
    await page.open(f"http://{base}/")
    await page.run("window.fetch = async () => { throw new TypeError('unreachable') }")
    await press(page, "#submit")
    # A changed form is another order: "nothing is bought twice" is not true of it.
    await page.until("document.querySelector('#form-error').textContent.includes('nothing is bought twice')")
    await fill(page, "amount", "2")
    assert await page.run("document.querySelector('#form-error').textContent") == ""


EXPIRY_ERROR = "document.querySelector('[data-error=expireTime]').textContent"


async def test_an_order_expires_at_the_time_on_the_users_clock(
    served: tuple[Settings, str], page: Page
) -> None:
    settings, base = served
    await page.command("Emulation.setTimezoneOverride", timezoneId="Asia/Kolkata")
    await page.open(f"http://{base}/")
    await fill(page, "expireTime", "2070-01-31T12:00")
    await press(page, "#submit")
    await page.until(f"{BADGE} === 'pending'")
    async with OrderClient(address(settings)) as client:
        (order,) = [order async for order in client.list()]
    assert order.spec.expire_time == datetime(2070, 1, 31, 6, 30, tzinfo=UTC)
    for place in (".timeline", "#orders"):
        condition = f"document.querySelector('{place} .condition')?.textContent"
        await page.until(f"{condition} === 'marketuntil 31 Jan 2070, 12:00'")


async def test_half_an_expiry_is_refused_rather_than_none(served: tuple[Settings, str], page: Page) -> None:
    _, base = served
    await page.open(f"http://{base}/")
    await stand_in(page)
    await page.run("document.querySelector('[name=expireTime]').focus()")
    await page.command("Input.dispatchKeyEvent", type="char", text="3")
    await press(page, "#submit")
    await page.until(f"{EXPIRY_ERROR} === 'is not a whole time; complete it or clear it'")
    assert await page.run("posted") == []
    await fill(page, "expireTime", "")
    assert await page.run(EXPIRY_ERROR) == ""
    await press(page, "#submit")
    await page.until("posted.length === 1")
    assert await page.run("'expireTime' in posted[0]") is False


# Has quotes answered with the status `answer`, and keeps how long the page waits after which answer.
QUOTED = """
    const [fetched, timed] = [window.fetch, window.setTimeout];
    let told;
    window.waits = [];
    window.fetch = async (path, options) => {
      if (!path.startsWith("/api/quote")) return fetched(path, options);
      told = window.answer;
      const body = { status: told, message: "no way", quotes: [], reason: "as told" };
      return new Response(JSON.stringify(body), { status: told });
    };
    window.setTimeout = (action, milliseconds) => {
      window.waits.push(`${milliseconds} ms after ${told}`);
      return timed(action, milliseconds);
    };
"""


async def test_what_is_not_to_be_had_is_asked_for_less_often(
    served: tuple[Settings, str], page: Page
) -> None:
    _, base = served
    await page.open(f"http://{base}/")
    await page.run(f"(() => {{ {QUOTED} }})()")
    for status, wait, other in ((409, 10_000, 2000), (200, 2000, 10_000), (503, 2000, 10_000)):
        await page.run(f"window.answer = {status}")
        await fill(page, "outputToken", MINT)
        await page.until(f"waits.includes('{wait} ms after {status}')")
        assert not await page.run(f"waits.includes('{other} ms after {status}')")


async def choose(page: Page, order_type: str) -> None:
    await press(page, f"[name=type][value={order_type}]")


# Instead of the order service, which would execute it.
ANSWERED = """
    const fetched = window.fetch;
    window.posted = [];
    window.fetch = async (path, options) => {
      if (path === "/api/orders/execute") {
        window.posted.push(JSON.parse(options.body));
        return new Response('{"success":true,"orderId":"0198c2f0-5b7e-7d31-a4c2-9f6e2b1d8a77"}');
      }
      return fetched(path, options);
    };
    window.WebSocket = class { constructor() { window.socket = this; } close() {} };
"""
TELL = "socket.onmessage({{data: JSON.stringify({})}})"


async def stand_in(page: Page) -> None:
    """Have the page's orders answered by the page itself."""
    await page.run(f"(() => {{ {ANSWERED} }})()")


async def tell(page: Page, **event: object) -> None:
    await page.run(TELL.format(json.dumps(event)))


BARE = {"side": "sell", "amount": "1", "inputToken": "SOL"}


@pytest.mark.parametrize(
    ("order_type", "shown", "filled", "sent", "condition"),
    [
        ("market", [], {}, {}, None),
        (
            "limit",
            ["limitPrice"],
            {"limitPrice": "150.50"},
            {"limitPrice": "150.50"},
            "limitat 150.5 7xKX…gAsU per SOL or better",
        ),
        ("sniper", ["minLiquidity", "maxPrice"], {}, {}, "sniperwhen it opens"),
        (
            "sniper",
            ["minLiquidity", "maxPrice"],
            {"minLiquidity": "10", "maxPrice": " 1e-3 "},
            {"minLiquidity": "10", "maxPrice": "1e-3"},
            "sniperwhen it opens with 10 SOL or more, at 0.001 SOL each at most",
        ),
    ],
)
async def test_each_type_shows_the_fields_it_needs_and_sends_no_others(
    served: tuple[Settings, str],
    page: Page,
    order_type: str,
    shown: list[str],
    filled: dict[str, str],
    sent: dict[str, str],
    condition: str | None,
) -> None:
    _, base = served
    await page.open(f"http://{base}/")
    await stand_in(page)
    # What was typed for another type stays there, and is not sent.
    await fill(page, "limitPrice", "1")
    await choose(page, order_type)
    assert await page.run(FIELDS) == [
        "amount",
        "inputToken",
        "outputToken",
        *shown,
        "slippageBps",
        "expireTime",
    ]
    assert await page.run("document.querySelector('#submit').textContent") == f"Submit {order_type} order"
    await fill(page, "outputToken", MINT)
    for name, value in filled.items():
        await fill(page, name, value)
    await press(page, "#submit")
    await page.until(f"{BADGE} === 'pending'")
    assert await page.run("posted") == [{**BARE, "outputToken": MINT, "type": order_type, **sent}]
    assert (
        await page.run("document.querySelector('.timeline strong').textContent") == "Sell 1 SOL for 7xKX…gAsU"
    )
    assert await page.run("document.querySelector('.timeline .condition')?.textContent ?? null") == condition


async def test_fields_of_a_type_say_what_is_wrong_with_them(served: tuple[Settings, str], page: Page) -> None:
    _, base = served
    await page.open(f"http://{base}/")
    await choose(page, "limit")
    await press(page, "#submit")
    line = "document.querySelector('[data-error={}]').textContent"
    await page.until(f"{line.format('limitPrice')} === 'is missing, and a limit order needs it'")
    assert await page.run("document.querySelector('[name=limitPrice]').ariaInvalid") == "true"
    await choose(page, "sniper")
    assert await page.run(line.format("limitPrice")) == ""
    await fill(page, "minLiquidity", "0." + "1" * 30)
    await fill(page, "maxPrice", "0." + "1" * 19)
    await press(page, "#submit")
    await page.until(f"{line.format('maxPrice')} !== ''")
    assert await page.run(line.format("minLiquidity")) == "has 30 decimals; at most 18"
    assert await page.run("document.querySelectorAll('.timeline').length") == 0


async def test_prices_are_in_the_chosen_tokens(served: tuple[Settings, str], page: Page) -> None:
    _, base = served
    await page.open(f"http://{base}/")
    label = "document.querySelector('#{}').textContent"
    assert await page.run(label.format("limit-label")) == "Limit price, USDC per SOL"
    assert await page.run(label.format("max-price-label")) == "Price at most, SOL per USDC"
    await press(page, "#swap")
    assert await page.run(label.format("limit-label")) == "Limit price, SOL per USDC"
    await fill(page, "outputToken", MINT)
    assert await page.run(label.format("max-price-label")) == "Price at most, USDC per 7xKX…gAsU"
    assert await page.run(label.format("liquidity-label")) == "Pools hold at least, USDC"


async def test_an_order_that_waits_again_says_why_and_goes_on(
    served: tuple[Settings, str], page: Page
) -> None:
    settings, base = served
    await page.open(f"http://{base}/")
    await choose(page, "limit")
    await fill(page, "limitPrice", "150")
    await press(page, "#submit")
    await page.until(f"{BADGE} === 'pending'")
    why = "document.querySelector('.timeline .why')?.textContent ?? null"
    resting = "document.querySelector('.timeline .badge').classList.contains('resting')"
    async with OrderClient(address(settings)) as client, Worker(settings) as worker:
        (order,) = [order async for order in client.list(types=[OrderType.LIMIT])]
        assert order.spec.limit_price == "150"
        await page.until(resting)
        assert await page.run(why) is None
        await worker.move(order.order_id, Claimed())
        await page.until(f"{BADGE} === 'routing'")
        assert await page.run(STEPS) == ["pending", "routing"]
        assert not await page.run(resting)
        await worker.move(order.order_id, Unmet(decision(), "<b>149.2</b> is offered"))
        await page.until(f"{why} === 'Waits again: <b>149.2</b> is offered'")
        assert await page.run(STEPS) == ["pending"]
        await worker.move(order.order_id, Claimed())
        await page.until(f"{why} === null")
        await worker.move(order.order_id, Unmet(decision(), "149.9 is offered"))
        await page.until(f"{why} === 'Waits again (2 times by now): 149.9 is offered'")
        await worker.execute(order.order_id)
    await page.until(f"{BADGE} === 'confirmed'")
    assert await page.run(STEPS) == ["pending", "routing", "building", "submitted", "confirmed"]
    assert await page.run(why) is None


async def test_the_list_shows_conditions_and_is_filtered_by_type_and_status(
    served: tuple[Settings, str], page: Page
) -> None:
    settings, base = served
    market = OrderSpec(Side.SELL, "1", "SOL", "USDC")
    limit = replace(market, type=OrderType.LIMIT, limit_price="150.5")
    sniper = replace(market, type=OrderType.SNIPER, min_liquidity="10", max_price="0.001")
    async with OrderClient(address(settings)) as client:
        for spec in (market, limit, sniper, replace(limit, limit_price="160")):
            order = await client.submit(spec)
        await client.cancel(order.order_id)
    await page.open(f"http://{base}/")
    rows = "[...document.querySelectorAll('#orders tr')]"
    told = "row.querySelector('.condition')?.innerText.replace('\\n', ': ') ?? ''"
    shown = f"JSON.stringify({rows}.map(row => [{told}, row.querySelector('.badge').className]))"
    rows_of = {
        "": ["", "badge pending"],
        "limit": ["limit: at 150.5 USDC per SOL or better", "badge pending resting"],
        "sniper": [
            "sniper: when it opens with 10 SOL or more, at 0.001 SOL each at most",
            "badge pending resting",
        ],
        "cancelled": ["limit: at 160 USDC per SOL or better", "badge cancelled"],
    }
    for order_type, status, expected in (
        ("", "", ["cancelled", "sniper", "limit", ""]),
        ("limit", "", ["cancelled", "limit"]),
        ("limit", "pending", ["limit"]),
        ("sniper", "pending", ["sniper"]),
        ("market", "pending", [""]),
    ):
        await page.run(
            f"document.querySelector('#type-filter').value = '{order_type}';"
            f"document.querySelector('#filter').value = '{status}';"
            "document.querySelector('#filter').dispatchEvent(new Event('change'))"
        )
        wanted = json.dumps([rows_of[name] for name in expected], separators=(",", ":"))
        await page.until(f"{shown} === {json.dumps(wanted)}")


async def test_what_rests_stays_in_the_session_longer_than_what_has_closed(
    served: tuple[Settings, str], page: Page
) -> None:
    _, base = served
    await page.open(f"http://{base}/")
    await stand_in(page)
    await choose(page, "sniper")
    await press(page, "#submit")
    await page.until("document.querySelectorAll('.timeline').length === 1")
    await choose(page, "market")
    for count in range(2, 11):
        await press(page, "#submit")
        await page.until(f"window.posted.length === {count} && !document.querySelector('#submit').disabled")
        await tell(page, sequence=1, status="confirmed")
    assert await page.run("document.querySelectorAll('.timeline').length") == 8
    assert (
        await page.run("document.querySelector('.timelines').lastChild.querySelector('.tag').textContent")
        == "sniper"
    )


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
        market = OrderSpec(Side.SELL, "1", "SOL", "USDC")
        await client.submit(replace(market, type=OrderType.SNIPER, min_liquidity="10", max_price="0.001"))
    await page.command(
        "Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True
    )
    await page.open(f"http://{base}/")
    await press(page, "#submit")
    await page.until(f"{BADGE} === 'pending'")
    await page.until("document.querySelectorAll('#orders tr').length === 2")
    assert await page.run("document.documentElement.scrollWidth") == 390
    long = f"document.querySelector('#quote-reason').textContent = '{MINT * 2}'"
    assert await page.run(f"{long}, document.documentElement.scrollWidth") == 390
    await fill(page, "outputToken", MINT)
    await stand_in(page)
    for order_type in ("limit", "sniper"):
        await choose(page, order_type)
        await fill(page, "limitPrice", "150")
        await press(page, "#submit")
        await page.until(f"document.querySelector('.timeline .tag')?.textContent === '{order_type}'")
        assert await page.run("document.documentElement.scrollWidth") == 390
