"""Group studies in which the PET of some scans is missing: proper draws of region values, and pooled analyses."""
