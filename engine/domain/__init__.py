"""The rules of the trade, pure: standard library only; no await, clock, randomness or logging.

Read lifecycle.py first.
"""
