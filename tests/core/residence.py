"""How much of a file that lies in memory is there."""

from __future__ import annotations


def resident(array) -> int:
    """Bytes of the mapping that holds this array which are in this process's memory."""
    address, kept = array.ctypes.data, 0
    inside = False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            first = line.split()[0]
            if "-" in first and not first.endswith(":"):
                low, _, high = first.partition("-")
                inside = int(low, 16) <= address < int(high, 16)
            elif inside and first == "Rss:":
                kept += int(line.split()[1]) * 1024
    return kept
