"""dualflow: PET from MR with an exact-likelihood hierarchical 3D flow."""

__version__ = "0.1.0"
