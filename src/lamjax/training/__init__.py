"""What every training stage shares: the loop, checkpoints, run folders and metrics."""
