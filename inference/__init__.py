"""How we learn: densities, runners, runs, evidence and calibration."""
