"""Tools of every training loop: optimizers, checkpoints, metrics, seeds and processes."""
