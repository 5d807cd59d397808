"""Curves: what a pool gives for what it gets, in exact integers, one program's mathematics a file.

pool.py holds what they share. A curve agrees with its program to the last base unit, errors included;
every rounding is the program's own and is against whoever swaps.
"""
