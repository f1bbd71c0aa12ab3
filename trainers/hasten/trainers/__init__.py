"""One training run: schedules, diffusion, data, models, the loop, checkpoints, evaluation."""
