"""Training an encoder: augmentation, losses, the trainer, and runs that can be interrupted and resumed."""
