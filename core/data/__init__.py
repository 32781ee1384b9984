"""Data sets: `dataset` opens one, `voc` and `images` read its files, `transforms` and `torch_datasets` feed networks.

dataset, voc and images do not import torch: stages 3, 6 and 9 fork.
"""
