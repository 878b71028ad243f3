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
# # Sample new networks
#
# A density over networks of the zoo that `build.py` made, and new networks drawn from it. Here the density is over the
# weights themselves, after the networks were brought into one alignment; with an encoder it is over representations.

# %%
from representation.sampling.sample import sample_zoo
from zootools import open_zoo

where = "activation == 'tanh' and epoch >= 4"
options = {"method": "kde-joint", "align": True, "where": where, "count": 16, "epochs": 2}
sampled = sample_zoo("zoos/digits_small", "zoos/digits_sampled", **options, quiet=True)

# %% [markdown]
# The audit belongs to the samples: are they new, or copies? It compares them with networks of which that is known.
# `distance` is that to the nearest training network, modulo permutation of hidden neurons, and `overlap` that of the
# misclassified images with those of the same network.

# %%
import pandas as pd

pd.DataFrame([row.model_dump() for row in sampled.audit.rows]).set_index("networks")

# %% [markdown]
# Draws of `kde-joint` are training networks with a little noise, and the audit says so: nearly all are nearer to
# a training network than training networks are to each other.

# %%
sampled.audit.nearer

# %% [markdown]
# The samples are a zoo like any other. Epoch 0 has them as they were drawn, the other epochs are their training.

# %%
zoo = open_zoo("zoos/digits_sampled")
zoo.metadata.select(["model_id", "epoch", "test_accuracy", "nearest_model", "nearest_distance"]).to_pandas().head()

# %%
pd.DataFrame(
    {curve.networks: pd.Series(curve.mean, curve.epochs) for curve in [sampled.accuracy, *sampled.audit.curves]}
).rename_axis("epoch")
