"""What is killed, when, and how a killed run is waited for."""

import random
import time

import psutil

from benchmarks.chaos.cluster import LocalCluster
from benchmarks.chaos.run import AlignJob

NODES, CPUS_PER_NODE = 3, 4
NODE, DRIVER = "a whole node", "the driver, resumed"
VICTIMS = {
    "a rollout worker in a trajectory": "RolloutWorker.collect",
    "a reward actor in a call": "RewardActor.score",
    "the weight store": "WeightStore",
    "the journal": "Journal",
    "a learner worker": "RayTrainWorker",
    "Ray Train's controller": "TrainController",
    NODE: "",
    DRIVER: "",
}
"""What Ray calls the processes of each: `Class.method` while they are in a call, else `Class`."""

SMALL_RUN = [
    "sampling.num_steps=6",
    "method.trained_steps=[5,4]",
    "rollout.trajectories=16",
    "rollout.batch_size=4",
    "learner.minibatch_size=16",
    "learner.micro_batch_size=8",
    "learner.max_restarts=1000",
    "samples.every=1000000",
    "samples.count=2",
    "evaluation.images=0",
    "records.save=true",
]


def schedule(kills: int, seed: int) -> list[str]:
    """Victims in a seeded order; each comes up once before any comes up again."""
    rng, victims = random.Random(seed), list[str]()
    while len(victims) < kills:
        victims += rng.sample(list(VICTIMS), len(VICTIMS))
    return victims[:kills]


def kill(job: AlignJob, cluster: LocalCluster, victim: str, rng: random.Random) -> None:
    """SIGKILL a victim, waiting for one where the last one is just being replaced."""
    if victim == NODE:
        # With the node that holds the journal the driver would die too, which is a victim of its own.
        cluster.kill_node(rng.choice(cluster.nodes_without("Journal")))
        cluster.add_node()
    elif victim == DRIVER:
        job.kill_driver()
    else:
        while not kill_one(cluster, VICTIMS[victim], rng):
            refuse_the_end(job)
            time.sleep(0.01)


def kill_one(cluster: LocalCluster, title: str, rng: random.Random) -> bool:
    """SIGKILL a process so called by Ray, if one still is once it is stopped: then its call cannot end."""
    processes = cluster.processes(title)
    if not processes:
        return False
    process = rng.choice(processes)
    try:
        process.suspend()
        if process not in cluster.processes(title):
            process.resume()
            return False
        process.kill()
    except psutil.NoSuchProcess:  # it ended since it was listed
        return False
    return True


def wait_for_iterations(job: AlignJob, count: int) -> None:
    """Wait until so many iterations are done.

    Raises:
        RuntimeError: the run has ended before.
    """
    while len(job.metrics()) < count:
        refuse_the_end(job)
        time.sleep(0.05)


def refuse_the_end(job: AlignJob) -> None:
    """What is to happen to a run must happen before it ends.

    Raises:
        RuntimeError: it has ended.
    """
    if not job.is_running():
        job.finish()
        raise RuntimeError(f"the run was over after {len(job.metrics())} iterations")
