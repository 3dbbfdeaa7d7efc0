"""Between a node and the coordinator: who is in, from which round, and what is committed. Imports no torch.

`seat` is a node's place at the table, whatever carries its words: `session` over mutual TLS, `table` within a process.
`server` is the coordinator itself; `python -m pcmoe_node.coordination --config FILE` runs it.
"""
