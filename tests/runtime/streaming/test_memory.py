from __future__ import annotations

import os
from pathlib import Path

from csd.runtime import GenerateOptions

IMAGES = 200  # every second one of a stream that is cancelled
# What the allocator may keep besides; a canvas, an event or a bound call that stayed for each run
# would be more.
ROOM_BYTES = 4 << 20


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_memory_stays_flat_over_many_images_and_cancelled_streams(session):
    ways = [
        GenerateOptions(num_iter=3, head_steps=2),
        GenerateOptions(mode="csd", num_iter=4, head_steps=2, gamma=2),
        GenerateOptions(mode="csd", num_iter=4, head_steps=2, gamma=2, verify="prefix"),
    ]

    def images(first, count):
        for number in range(first, first + count, 2):
            options = ways[number // 2 % len(ways)]
            session.generate([number % 10], options, first_image=number)
            for event in session.stream([number % 10], options, first_image=number + 1):
                if event.progress.done >= 1 + number % 2:
                    if number % 5 == 0:
                        event.images()
                    break

    images(0, 60)
    before = resident()
    images(60, IMAGES)
    assert resident() - before < ROOM_BYTES
