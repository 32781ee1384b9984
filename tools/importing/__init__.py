"""Readers for files of the authors' published code: pickled arrays, and networks with other names."""
