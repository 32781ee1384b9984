"""How work is shared: a batch among processes, devices and micro-batches; images among worker processes."""
