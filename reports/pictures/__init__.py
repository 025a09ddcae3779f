"""The picture where people look: data against what each model says they should be. One file a kind of data."""
