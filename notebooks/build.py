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
# A zoo is decided by one YAML file. This one has 32 small convolutional networks on scikit-learn's scanned digits:
# two activations, two initialisations and two learning rates, each with four seeds. It takes seconds, and no
# download.

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
# What it will take, before anything is written:

# %%
from zootools.building.planning import estimate

estimate(spec)

# %% [markdown]
# Models of one structure are trained side by side. The same call again, after an interruption or not, trains only
# what is missing.

# %%
manifest = build(spec, Path("zoos/digits_small"), device="cpu", quiet=True)
manifest["counts"]

# %% [markdown]
# Minimum, quartiles and maximum of the test accuracy, by epoch:

# %%
import pandas as pd

quartiles = pd.DataFrame(manifest["test_accuracy"], index=["minimum", "quartile", "median", "quartile ", "maximum"]).T
quartiles.sort_index(key=lambda epochs: epochs.astype(int))

# %% [markdown]
# The folder is a Hugging Face data set as it is:

# %%
for path in sorted(Path("zoos/digits_small").rglob("*")):
    if path.is_file() and "stack-00001" not in path.parts:
        print(f"{path.stat().st_size:>9,}  {path.relative_to('zoos/digits_small')}")

# %% [markdown]
# On the CPU a model depends neither on the models beside it nor on how long they are trained. One that is trained
# alone, for an epoch, has the same weights, bit for bit:

# %%
part = load_spec(Path("digits_small.yaml"), ["models=1", "training.epochs=1"])
build(part, Path("zoos/alone"), device="cpu", quiet=True)
zoo, alone = open_zoo("zoos/digits_small"), open_zoo("zoos/alone")
(model,) = alone.models
mine, theirs = alone.state_dict(model, 1), zoo.state_dict(model, 1)
assert all(mine[name].equal(theirs[name]) for name in mine)
model

# %% [markdown]
# `explore.py` looks at this zoo, `represent.py` learns from it.
