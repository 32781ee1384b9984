"""The demo data set, drawn from a seed alone; tools/make_demo_data.py writes it to files."""
