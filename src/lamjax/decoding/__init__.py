"""Stage 3: from latent to real actions."""
