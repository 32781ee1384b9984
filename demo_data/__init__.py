"""The drawing of the demo data set, from nothing but a seed; tools/make_demo_data.py writes it to files."""
