"""Captions by the million: a file of rows, one engine, and pictures that are each drawn once, come what may."""
