"""The clocks that a measurement may count by."""

from __future__ import annotations

import time

# `cpu` is the process's own processor time, which other work disturbs little; not for devices.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
