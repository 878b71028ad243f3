"""Specifications of zoos: the sections of the YAML file, and the models that follow from it."""

from zootools.spec.images import DatasetImages, FolderImages, ImageFacts, Images, ImageSetName, TetrisImages
from zootools.spec.population import Activation, Draw, Hyperparameters, Init, Optimizer
from zootools.spec.stored_spec import parse_stored_spec
from zootools.spec.values import MAX_CHECKPOINTS, MAX_MODELS, Name, Seed
from zootools.spec.zoo_spec import (
    Architecture,
    Cnn,
    CnnName,
    Mlp,
    OwnArchitecture,
    Training,
    ZooSpec,
    load_spec,
    parse_spec,
)

__all__ = [
    "MAX_CHECKPOINTS",
    "MAX_MODELS",
    "Activation",
    "Architecture",
    "Cnn",
    "CnnName",
    "DatasetImages",
    "Draw",
    "FolderImages",
    "Hyperparameters",
    "ImageFacts",
    "ImageSetName",
    "Images",
    "Init",
    "Mlp",
    "Name",
    "Optimizer",
    "OwnArchitecture",
    "Seed",
    "TetrisImages",
    "Training",
    "ZooSpec",
    "load_spec",
    "parse_spec",
    "parse_stored_spec",
]
