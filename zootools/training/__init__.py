"""Training of a zoo's models.

`reference` trains one model in plain PyTorch and defines the right result. `stacked` and `native` train many models
at once and must agree with it; they share `group`, `initialise` and `evaluation`. `backend` is their interface, `table`
their names. `stack` trains one stack of a zoo over its epochs; the engines call it.
"""
