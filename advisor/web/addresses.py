"""Addresses: what this machine is called where others reach it, read once when the daemon starts.

A daemon that listens at every address is called by each of them. A page elsewhere that has its own name resolve here (DNS
rebinding) calls it by that name, which is none of these.
"""

from __future__ import annotations

import ipaddress
import socket
from functools import lru_cache


def is_unspecified(host: str) -> bool:
    """Whether a server that listens at this address does at each of the machine's."""
    try:
        return host == "" or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


@lru_cache(maxsize=256)
def plain(name: str) -> str:
    """Return a name or an address as it is compared: in small letters, an IPv6 address in its shortest form."""
    small = name.rstrip(".").lower()
    try:
        return str(ipaddress.ip_address(small))
    except ValueError:
        return small


def own_names(host: str) -> tuple[str, ...]:
    """Return what a server that listens at `host` can be called from elsewhere: the addresses of this machine, then its name.

    An address that is of one link alone is left out, for a URL can't name it. Where it listens at one address, that is all.
    """
    if not is_unspecified(host):
        return (plain(host),)
    import psutil

    families = {socket.AF_INET} if "." in host else {socket.AF_INET, socket.AF_INET6}
    links = psutil.net_if_stats()
    found = [
        ipaddress.ip_address(address.address)
        for link, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family in families and "%" not in address.address and link in links and links[link].isup
    ]
    reached = sorted(
        (each for each in found if not each.is_loopback and not each.is_link_local), key=lambda a: a.version
    )
    return (*dict.fromkeys(map(str, reached)), plain(socket.gethostname()))
