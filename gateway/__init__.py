"""REST, WebSocket and the web console: a translation of the order API for browsers, and nothing else.

Reads no database and knows no domain: whatever is said here is asked of the gRPC server through `client`.
"""
