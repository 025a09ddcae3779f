"""Data that models read and no instrument gives: made of data of another kind, with their errors."""
