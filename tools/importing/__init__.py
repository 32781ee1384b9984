"""What the authors' published code wrote: pickled arrays and networks with other names."""
