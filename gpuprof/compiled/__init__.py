"""What torch.compile makes of a step: captured while it compiles, and given to the modules that it came from."""
