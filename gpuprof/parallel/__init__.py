"""Processes of one job, through torch.distributed: the group that they share and how the model lies on it."""
