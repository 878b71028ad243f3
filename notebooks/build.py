# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Build a zoo
#
# One YAML file, the specification, determines a zoo. This one describes 32 small convolutional networks on
# scikit-learn's scanned digits: two activations, two initialisations and two learning rates, each with four seeds. The
# build takes seconds and needs no download.

# %%
from pathlib import Path

from zootools import build, load_spec, open_zoo

Path("digits_small.yaml").write_text("""
name: digits_small
description: 32 small CNNs on scanned digits
images: {name: digits, train: 1000, size: 28, mean: 0.305, std: 0.325}
architecture: {name: cnn_small}
grid:
  activation: [tanh, relu]
  init: [uniform, kaiming_normal]
  optimizer: [adam]
  lr: [3.0e-3, 1.0e-3]
seeds: {range: [1, 4]}
training: {epochs: 6, batch_size: 8}
""")
spec = load_spec(Path("digits_small.yaml"))
spec.configuration_count, spec.model_count

# %% [markdown]
# An estimate of its size and time, before anything is written:

# %%
from zootools.building.planning import estimate

estimate(spec)

# %% [markdown]
# Models of the same structure are trained side by side. The same call again trains only what is missing, for example
# after an interruption.

# %%
manifest = build(spec, Path("zoos/digits_small"), device="cpu", quiet=True)
manifest.counts.model_dump()

# %% [markdown]
# Minimum, quartiles and maximum of the test accuracy, by epoch:

# %%
import pandas as pd

quartiles = pd.DataFrame(manifest.test_accuracy, index=["minimum", "quartile", "median", "quartile ", "maximum"]).T
quartiles.sort_index(key=lambda epochs: epochs.astype(int))

# %% [markdown]
# The folder is a Hugging Face data set:

# %%
for path in sorted(Path("zoos/digits_small").rglob("*")):
    if path.is_file() and "stack-00001" not in path.parts:
        print(f"{path.stat().st_size:>9,}  {path.relative_to('zoos/digits_small')}")

# %% [markdown]
# On the CPU, the weights of a model depend neither on the models trained beside it nor on the number of epochs that
# follow. A model that is trained alone, for one epoch, has the same bits:

# %%
part = load_spec(Path("digits_small.yaml"), ["models=1", "training.epochs=1"])
build(part, Path("zoos/alone"), device="cpu", quiet=True)
zoo, alone = open_zoo("zoos/digits_small"), open_zoo("zoos/alone")
(model,) = alone.models
mine, theirs = alone.state_dict(model, 1), zoo.state_dict(model, 1)
assert all(mine[name].equal(theirs[name]) for name in mine)
model

# %% [markdown]
# The notebook `explore.py` inspects this zoo, `represent.py` learns from it.
