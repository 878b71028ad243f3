"""Training of a zoo's models.

`reference` trains one model in plain PyTorch and defines what is right; `stacked` trains many at once and
must agree with it; `initialise` and `evaluation` are shared by both. `stack` runs one stack of a zoo over
its epochs and is what the engines call.
"""
