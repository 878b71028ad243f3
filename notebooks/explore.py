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
# # Explore a zoo
#
# The zoo is the one that `build.py` made; any other folder, or a name on the Hub, works too.

# %%
import pyarrow.compute as pc

from zootools import open_zoo

zoo = open_zoo("zoos/digits_small")
zoo.counts

# %% [markdown]
# A row of the metadata is a checkpoint: one model at one epoch.

# %%
table = zoo.metadata.to_pandas()
table[["model_id", "epoch", "split", "activation", "init", "lr", "test_accuracy", "generalization_gap"]].head(9)

# %% [markdown]
# The test accuracy of each configuration at the last epoch:

# %%
last = table[table["epoch"] == table["epoch"].max()]
last.groupby(["activation", "init", "lr"])["test_accuracy"].agg(["count", "min", "median", "max"])

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
for panel, (activation, group) in zip(axes, table.groupby("activation"), strict=True):
    for (init, lr), curves in group.groupby(["init", "lr"]):
        by_epoch = curves.groupby("epoch")["test_accuracy"]
        (line,) = panel.plot(by_epoch.median(), label=f"{init}, lr {lr:g}")
        panel.fill_between(by_epoch.median().index, by_epoch.min(), by_epoch.max(), color=line.get_color(), alpha=0.15)
    panel.set(title=activation, xlabel="epoch")
axes[0].set_ylabel("test accuracy: median and range over seeds")
axes[1].legend()
plt.show()

# %% [markdown]
# ## Weights
#
# `weights()` returns one vector per row of the metadata, mapped from the shards. Two principal components show the
# paths of the models; models with the same seed and initialisation start at the same point. `zootools plot` writes
# this picture, and others, as files.

# %%
from sklearn.decomposition import PCA

from zootools.plots import Portrait, embedding

portrait = Portrait.of(zoo)
points = PCA(2).fit_transform(portrait.zoo.weights())
embedding(portrait.with_plane("W", points, "PCA"), "W")

# %% [markdown]
# ## One model
#
# The kernels of the first layer of the best model, over its epochs:

# %%
best = last.loc[last["test_accuracy"].idxmax()]
epochs = [0, 1, 2, 4, 6]
figure, axes = plt.subplots(len(epochs), 8, figsize=(8, 5.4), layout="constrained")
kernels = [zoo.state_dict(best["model_id"], epoch)["conv1.weight"][:, 0] for epoch in epochs]
limit = max(float(kernel.abs().max()) for kernel in kernels)
for row, epoch, kernel in zip(axes, epochs, kernels, strict=True):
    for cell, picture in zip(row, kernel, strict=True):
        cell.imshow(picture, cmap="RdBu", vmin=-limit, vmax=limit)
        cell.set(xticks=[], yticks=[])
    row[0].set_ylabel(f"epoch {epoch}")
figure.suptitle(f"conv1 of {best['model_id']} ({best['activation']}, {best['init']}), one column per kernel")
plt.show()

# %% [markdown]
# The network runs, and its accuracy is the one stored in the zoo:

# %%
from zootools.images import load_images

network = zoo.module(best["model_id"], epoch=6)
test = load_images(zoo.spec.images).test
found = (network(test.images).argmax(dim=1) == test.labels).double().mean().item()
print(f"{found:.3f} here, {best['test_accuracy']:.3f} in the zoo")

# %% [markdown]
# ## A symmetry
#
# The order of hidden neurons is arbitrary. The layer schema, stored in the zoo, determines which weights are permuted
# together; the permuted network is far away in weight space and computes the same function.

# %%
import numpy as np
from torch.nn.utils import vector_to_parameters

flat = zoo.checkpoint(best["model_id"], 6).weights()[0]
random = np.random.default_rng(0)
orders = {layer.name: random.permutation(layer.outputs) for layer in zoo.schema.layers[:-1]}
permuted = flat[zoo.schema.permutation_index(orders)]
before = network(test.images)
vector_to_parameters(permuted, network.parameters())
distance, change = (flat - permuted).norm() / flat.norm(), (network(test.images) - before).abs().max()
print(f"moved by {distance:.2f} of its length; logits changed by at most {change:.1e}")

# %% [markdown]
# `where` selects checkpoints before any weight is read:

# %%
good = zoo.where((pc.field("test_accuracy") > 0.8) & (pc.field("epoch") > 0))
len(good), tuple(good.weights().shape)
