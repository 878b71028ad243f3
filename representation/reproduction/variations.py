"""The changes of a recipe by which encoders of one zoo and loss differ: ablations of the paper, faults of its code."""


def augmented(letters: str) -> tuple[str, ...]:
    """Return the overrides of a recipe for Table 3: P permutation, E erasing, N noise as in the paper."""
    on = "" if letters == "none" else letters
    return (
        f"augmentation.permute={'true' if 'P' in on else 'false'}",
        f"augmentation.erase_probability={0.5 if 'E' in on else 0.0}",
        f"augmentation.noise={0.05 if 'N' in on else 0.0}",
    )


AUGMENTATIONS = ("none", "P", "E", "N", "PE", "PN", "EN", "PEN")
LATENTS = {2: 50, 3: 33, 5: 20}
"""The length of z for each compression c = N / L of Table 12; all other tables have the smallest c."""
UNTRANSPOSED = "untransposed"
"""The variation in which the weights are in the order of TensorFlow (`representation.reproduction.faults`)."""
FAULTS: dict[str, tuple[str, ...]] = {
    "repels": ("loss.positive=paper_code",),
    "identical": (*augmented("E"), "augmentation.identical=true"),
    "six": ("augmentation.orders=6",),
    UNTRANSPOSED: (),
}
"""Variations that have a fault of the paper's released code."""
VARIATIONS: dict[str, tuple[str, ...]] = {
    "": (),
    "FF": (f"encoder={{kind: feed_forward, latent: {LATENTS[2]}}}",),
    "AttW": ("encoder.tokens=weight", "encoder.compression_token=false"),
    "AttW+t": ("encoder.tokens=weight",),
    "AttN": ("encoder.compression_token=false",),
    **{letters: augmented(letters) for letters in AUGMENTATIONS if letters != "PE"},
    **{f"c{c}": (f"encoder.latent={LATENTS[c]}",) for c in (3, 5)},
    **FAULTS,
}
"""The overrides of the recipe for each variation of a job."""
