"""Training of a zoo's models.

`reference` trains one model in plain PyTorch and defines what is right. `stacked` and `native` train many at once
and must agree with it; `group`, `initialise` and `evaluation` are shared by them, and `backend` chooses one.
`stack` runs one stack of a zoo over its epochs and is what the engines call.
"""
