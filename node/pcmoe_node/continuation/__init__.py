"""How a prompt goes on, before training and after it, where all participants' checkpoints lie on one machine.

In a consortium nobody can do this: no organisation has the others' experts. Nothing is sent, and nothing but the file
that is asked for is written; prompts and what follows are in no log.
"""
