"""What a disassembly (nvdisasm's text) says of a Hopper kernel."""

import re


def loops_over_steps(listing: str) -> list[list[str]]:
    """The instructions of each loop that holds matmuls and lies inside another loop, which is the one over work items.

    Of the compute warpgroups, whose code comes before the copy warpgroup's (it begins by giving registers back) and before
    the blocks, put last, that wait for a barrier once more and jump back.
    """
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*)", line):
            instructions.append(found[1])
    [end] = [at for at, text in enumerate(instructions) if "USETMAXREG.DEALLOC" in text]
    loops = []
    for at, text in enumerate(instructions[:end]):
        target = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", text)
        if target and labels[target[1]] < at:
            loops.append((labels[target[1]], at))
    return [
        instructions[start : stop + 1]
        for start, stop in loops
        if any(first <= start and stop <= last and (first, last) != (start, stop) for first, last in loops)
        and any("HGMMA" in text for text in instructions[start:stop])
    ]
