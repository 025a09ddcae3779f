"""Readers of one family of files each, and the way from an array with axes to a kind of data."""
