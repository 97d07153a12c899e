"""Model families: structure only, one file each, listed in `registry`.

Knows config keys and layers; no kernel, no batch, no device and no torch.
"""
