"""The workflow's steps: each reads its section of the configuration, does its work, and writes its manifest last."""
