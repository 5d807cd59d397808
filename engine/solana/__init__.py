"""Solana as it is on the wire: addresses, account layouts, instructions, transactions, JSON-RPC."""
