"""What one organisation gets without the others, and what one process over everybody's data would get.

Each is one process that talks to nobody, told by the same NodeConfigs as the consortium's nodes: same first weights,
data order, tokens, steps, schedule and evaluation, and the same code from the router to the optimizer. It is a node of
a consortium with one member; `settings` says what that changes, `shard` cuts a model down to one participant's experts,
`pool` mixes everybody's data, `training` runs it, and `__main__` is the command.
"""
