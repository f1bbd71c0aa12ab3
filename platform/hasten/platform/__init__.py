"""Services and composition: command line, settings, tracking, cluster, local stack, retraining."""
