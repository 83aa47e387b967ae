"""Training: the one loop for pretraining and fine-tuning, optimisers, checkpoints, watchers, distributed."""
