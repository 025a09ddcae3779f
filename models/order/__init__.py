"""Order parameters, walls and free energies."""
