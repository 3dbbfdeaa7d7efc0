"""A local run: the plan's participants as processes of this machine, over the same mutual TLS as elsewhere.

`folder` knows what lies where, `prepare` fills a folder from a manifest, `processes` starts and ends processes,
`restarts` says which are started again, `keeper` does it for one and `company` for all, `certificates` renews their
leaves, `watch` asks how far they are, `view` shows it, `failure` finds who failed first, and `supervise` ties it
together.
"""
