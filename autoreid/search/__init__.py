"""Genotypes, spaces, candidate operations, supernets, relaxations, the architect and the search loop."""
