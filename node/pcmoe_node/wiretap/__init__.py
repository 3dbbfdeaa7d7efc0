"""Accounts for every byte of a recorded run (`exchange/tls/tap.py`): what it is, to whom it went, what is left over.

`tape` cuts recordings into frames, `parts` walks through a frame's bytes, `account` adds up, `against` compares with
the ledgers. It shares the table of kinds and the header's layout with the exchange, and nothing else: where a section
begins and ends is computed here anew, so that a mistake in one place is found by the other.
"""
