"""The order API for Python programs: submit orders, watch them execute, read them back, cancel them.

A whole program; it ends when the order does:

    import asyncio

    from client import OrderClient, OrderSpec, OrderStatus, Side


    async def main() -> None:
        async with OrderClient("127.0.0.1:50051") as client:
            order = await client.submit(OrderSpec(Side.SELL, "1.5", "SOL", "USDC"))
            async for event in client.watch(order.order_id):
                print(event.sequence, event.status, event.venue, event.price)
            if event.status is OrderStatus.CONFIRMED:
                print(f"{event.input_amount} SOL -> {event.output_amount} USDC, {event.tx_hash}")


    asyncio.run(main())

A limit order executes once its price is there, a sniper order once its token is to be had (OrderSpec says
how). They are submitted and watched in the same way; they only take longer.
"""

from client.errors import (
    FieldViolation,
    InternalError,
    InvalidOrder,
    NodeUnavailable,
    NoRoute,
    OrderClosed,
    OrderError,
    OrderInFlight,
    OrderNotFound,
    Refused,
    RequestIdReused,
    SequenceAhead,
    ServerUnavailable,
    TooManyOrders,
    Unavailable,
)
from client.order import (
    FailureReason,
    Order,
    OrderDetails,
    OrderEvent,
    OrderPage,
    OrderSpec,
    OrderStatus,
    OrderType,
    Quote,
    Receipt,
    Route,
    RouteLeg,
    RoutingDecision,
    Side,
    Submission,
    SubmittedOrder,
)
from client.order_client import OrderClient

__all__ = [
    "FailureReason",
    "FieldViolation",
    "InternalError",
    "InvalidOrder",
    "NoRoute",
    "NodeUnavailable",
    "Order",
    "OrderClient",
    "OrderClosed",
    "OrderDetails",
    "OrderError",
    "OrderEvent",
    "OrderInFlight",
    "OrderNotFound",
    "OrderPage",
    "OrderSpec",
    "OrderStatus",
    "OrderType",
    "Quote",
    "Receipt",
    "Refused",
    "RequestIdReused",
    "Route",
    "RouteLeg",
    "RoutingDecision",
    "SequenceAhead",
    "ServerUnavailable",
    "Side",
    "Submission",
    "SubmittedOrder",
    "TooManyOrders",
    "Unavailable",
]
