"""The paper's analyses: do models agree, which timesteps are hard, how is the loss curved."""
