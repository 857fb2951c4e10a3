"""Addresses on which processes listen."""

import psutil


def listening_addresses(process_id):
    """IP addresses of the listening sockets of a process and its descendants."""
    root = psutil.Process(process_id)
    processes = [root, *root.children(recursive=True)]
    connections = [entry for process in processes for entry in process.net_connections("inet")]
    return {entry.laddr.ip for entry in connections if entry.status == psutil.CONN_LISTEN}
