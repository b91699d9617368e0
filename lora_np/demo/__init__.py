"""``lora-np demo``: what the package does, in measured numbers.

`experiment` computes, `report` makes tables of it, `pictures` draws it, and `command` is the verb.
"""
