"""The demo: what the package does, in measured numbers.

`base`, `ranks` and `tasks` train models; `merging`, `parameters` and `checks` examine them. `command` runs them all,
`report` formats the numbers as tables, and `pictures` plots them.
"""
