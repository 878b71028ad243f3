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
# # Learn from a zoo
#
# An encoder learns from the weights of the zoo that `build.py` made, without labels; linear probes then measure how
# well properties of the models can be predicted. The zoo is tiny and the training short, so the scores are low.

# %%
from pathlib import Path

import torch

from representation import load_recipe, represent, train_encoder
from zootools import open_zoo

zoo = open_zoo("zoos/digits_small")
{split: len(zoo.split(split).models) for split in ("train", "validation", "test")}

# %% [markdown]
# A recipe contains all settings of an encoder except the zoo and the seed. Here a small one: 48 neuron tokens per
# network are encoded as a representation z of 16 numbers.

# %%
changes = ["encoder.width=32", "encoder.hidden=64", "encoder.latent=16"]
changes += ["training.epochs=8", "training.steps=10", "training.batch_size=50"]
recipe = load_recipe("default", changes)
encoder = train_encoder(zoo, recipe, Path("encoders/digits_small"), quiet=True)
z = encoder.embed(zoo.weights())
z.shape

# %%
import matplotlib.pyplot as plt
from sklearn.decomposition import PCA

points = PCA(2).fit_transform(z)
table = zoo.metadata.to_pandas()
figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), sharex=True, sharey=True, layout="constrained")
for name, marker in (("uniform", "o"), ("kaiming_normal", "^")):
    rows = table["init"] == name
    axes[0].scatter(*points[rows].T, s=8, marker=marker, label=name)
axes[0].legend()
for panel, column, title in zip(axes[1:], ("epoch", "test_accuracy"), ("epoch", "test accuracy"), strict=True):
    scatter = panel.scatter(*points.T, s=8, c=table[column], cmap="viridis")
    figure.colorbar(scatter, label=title)
axes[0].set_ylabel("component 2 of z")
for panel in axes:
    panel.set_xlabel("component 1 of z")
plt.show()

# %% [markdown]
# ## A probe by hand
#
# Ridge regression from features to a property, fitted on the models of the train split, with the penalty chosen on
# the validation split, and scored on the test split. R2 is 1 for a perfect prediction and 0 for that of the mean.

# %%
from representation.evaluation.probes import fit_ridge, r2


def score(features: torch.Tensor, target: str) -> float:
    values = torch.tensor(table[target].to_numpy())[:, None]
    part = {name: torch.tensor((table["split"] == name).to_numpy()) for name in ("train", "validation", "test")}
    train, validation, test = ((features[rows], values[rows]) for rows in part.values())
    return r2(test[1], fit_ridge(train, validation, standardise=True)(test[0]))


for name, features in {"weights": zoo.weights(), "z": z}.items():
    print(f"{name:8}", *(f"{target} {score(features, target):6.2f}" for target in ("epoch", "test_accuracy")))

# %% [markdown]
# ## All probes at once
#
# `represent` does this for every property and also for baselines; here for the last epoch only, so that the models
# differ in their hyper-parameters. For a zoo of the paper, the table also contains the paper's values.

# %%
results = represent(zoo, "default", overrides=[*changes, "epochs.first=6"], quiet=True)
print(results.render())

# %% [markdown]
# The same as a tidy table, for your own pictures and tests:

# %%
scores = results.table.to_pandas()
test = scores[(scores["split"] == "test") & (scores["probe"] == "standardised") & (scores["metric"] != "kendall_tau")]
test.pivot_table(index="target", columns="method", values="value").round(2)
