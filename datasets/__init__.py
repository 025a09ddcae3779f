"""What is observed: the data contract, readers of files, and simulated scenes with their truth."""
