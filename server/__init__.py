"""The gRPC server: OrderService, health, reflection. Owns no state.

service.py answers the calls, watches.py streams events, convert.py knows both the contract's messages and the
domain's values, refusals.py how an error travels. link.py answers gateways of the same host past gRPC.
"""
