"""A local run: the plan's participants as processes of this machine, over the same mutual TLS as elsewhere.

`folder` knows what lies where, `prepare` fills a folder from a manifest, `processes` starts and ends nodes,
`watch` asks them how far they are, `view` shows it, `failure` finds who failed first, and `supervise` ties
it together.
"""
