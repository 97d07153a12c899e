"""Model families: structure only, one file each, found through `registry`.

Knows config keys and layers; no kernel, no batch, no device, and no torch.
"""
