"""Structure: what is where in an image, and what symmetry it has in the Bayesian sense."""
