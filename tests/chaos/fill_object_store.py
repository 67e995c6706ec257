"""Fill the object store of every node of the cluster that RAY_ADDRESS names, say `full`, and hold it until killed."""

import sys
import time

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

PIECE_BYTES = 4 * 2**20


@ray.remote(num_cpus=0)
class Filler:
    def fill(self, num_bytes: int) -> None:
        self.held = [ray.put(np.zeros(PIECE_BYTES, np.uint8)) for _ in range(num_bytes // PIECE_BYTES + 1)]


ray.init(log_to_driver=False, logging_level="ERROR")
fillers = [
    Filler.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
    for node in ray.nodes()
    if node["Alive"]
]
ray.get([filler.fill.remote(int(sys.argv[1])) for filler in fillers])
print("full", flush=True)
time.sleep(3600)
