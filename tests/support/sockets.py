"""Addresses on which processes listen."""

from contextlib import suppress

import psutil


def listening_addresses(process_id):
    """IP addresses of the listening sockets of a process and its descendants."""
    root = psutil.Process(process_id)
    processes = [root, *root.children(recursive=True)]
    connections = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # it may have ended by now
            connections += process.net_connections("inet")
    return {entry.laddr.ip for entry in connections if entry.status == psutil.CONN_LISTEN}
