"""Where a run happens: distribution strategy, precision, and seeds."""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import gin
import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow.python.eager import context  # no public way to limit its patience

from tl_tf import startup

PRECISIONS = ("auto", "float32", "mixed_bfloat16")
START_SECONDS = 600.0  # that hosts wait for each other; TensorFlow alone, an hour

# What TensorFlow raises on a host when another one is gone.
HOST_IS_GONE = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.UnavailableError,
)


@gin.configurable
def configure_runtime(
    tpu: str | None, *, precision: str = "auto", num_cpu_replicas: int = 1
) -> tf.distribute.Strategy:
    """Chooses the devices and the numeric precision; call once, before any tensor.

    A TPU if one is named; else, with TF_CONFIG set, MultiWorkerMirroredStrategy; else
    all GPUs under MirroredStrategy; else the CPU.

    Args:
      tpu: a name, `local`, `grpc://host:port`, or None.
      precision: "float32", "mixed_bfloat16" (compute in bfloat16, variables in
        float32), or "auto": the latter on TPU.
      num_cpu_replicas: logical CPU devices for MirroredStrategy, for tests.

    Raises:
      ValueError: for an unknown precision, a TPU that does not answer, a TF_CONFIG that
        names no workers, hosts that do not start, or replicas asked for where there are
        GPUs.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"configure_runtime.precision must be one of {PRECISIONS}, got"
            f" {precision!r}."
        )
    if num_cpu_replicas < 1:
        raise ValueError(
            "configure_runtime.num_cpu_replicas must be at least 1, got"
            f" {num_cpu_replicas}."
        )
    if precision == "auto":
        precision = "float32" if tpu is None else "mixed_bfloat16"
    tf_keras.mixed_precision.set_global_policy(precision)
    gpus = tf.config.list_physical_devices("GPU")
    if tpu is not None:
        return _tpu_strategy(tpu)
    if num_cpu_replicas > 1:
        if gpus:
            raise ValueError(
                "configure_runtime.num_cpu_replicas is for machines without GPU; here"
                f" are {len(gpus)}. Leave it at 1, or hide the GPUs with"
                " CUDA_VISIBLE_DEVICES=-1."
            )
        _split_cpu(num_cpu_replicas)
    if "TF_CONFIG" in os.environ:
        return _hosts_strategy(_workers_of(os.environ["TF_CONFIG"]))
    if gpus:
        return tf.distribute.MirroredStrategy()
    if num_cpu_replicas > 1:
        return tf.distribute.MirroredStrategy(
            [f"CPU:{i}" for i in range(num_cpu_replicas)]
        )
    return tf.distribute.OneDeviceStrategy("/cpu:0")


def _split_cpu(num_replicas: int) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    wanted = [tf.config.LogicalDeviceConfiguration()] * num_replicas
    try:
        tf.config.set_logical_device_configuration(cpu, wanted)
    except RuntimeError:  # TensorFlow has started: the devices are what they are
        count = len(tf.config.list_logical_devices("CPU"))
        if count < num_replicas:
            raise ValueError(
                f"configure_runtime.num_cpu_replicas={num_replicas}, but TensorFlow has"
                f" already started with {count} CPU devices in this process."
            ) from None


def _hosts_strategy(workers: list[str]) -> tf.distribute.Strategy:
    print(f"hosts  waiting for all of {', '.join(workers)}", flush=True)
    job = context.coordination_config_pb2.CoordinatedJob(
        name="worker", num_tasks=len(workers)
    )
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader="/job:worker/replica:0/task:0",
        coordinated_jobs=[job],
        cluster_register_timeout_in_ms=round(1000 * START_SECONDS),
    )
    # Or only the first host's start is waited for so long, that of the others an hour.
    context.context().coordination_service.cluster_register_with_barrier = True
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.DeadlineExceededError as error:
        text = error.message.partition("timed out task names")[2].split("Additional")[0]
        missing = [workers[int(index)] for index in re.findall(r"/task:(\d+)", text)]
        raise ValueError(
            f"TF_CONFIG: {', '.join(missing or workers[:1])} did not start within"
            f" {START_SECONDS:g} s. Start the same command on every host; see why in"
            " the output of those that ended, and whether the addresses are right."
        ) from None


def _workers_of(text: str) -> list[str]:
    """The addresses in a TF_CONFIG that has workers alone."""
    try:
        given = json.loads(text)
        workers, task = given["cluster"]["worker"], given["task"]
        is_good = (
            set(given["cluster"]) == {"worker"}
            and all(isinstance(worker, str) for worker in workers)
            and task["type"] == "worker"
            and int(task["index"]) in range(len(workers))
        )
    except (ValueError, TypeError, KeyError):
        is_good = False
    if not is_good:
        raise ValueError(
            f"TF_CONFIG={text}: wanted the workers' addresses and which of them this"
            ' host is, as {"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]},'
            ' "task": {"type": "worker", "index": 0}}. Worker 0 writes the files: there'
            " is no other chief."
        )
    return workers


def _tpu_strategy(tpu: str) -> tf.distribute.Strategy:
    startup.probe_tpu(tpu)
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=tpu)
        if tpu != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (OSError, ValueError, RuntimeError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise ValueError(
            f"--tpu={tpu}: no TPU could be initialised ({reason}). On a TPU VM use"
            " --tpu=local; elsewhere check the name and the project."
        ) from None
    return tf.distribute.TPUStrategy(resolver)


def num_hosts(strategy: tf.distribute.Strategy) -> int:
    """Processes that each feed their own replicas; 1 but for several workers."""
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        cluster = strategy.cluster_resolver.cluster_spec()
        return max(1, len(cluster.as_dict().get("worker", [])))
    return 1


def host_index(strategy: tf.distribute.Strategy) -> int:
    """Which of `num_hosts` this process is; host 0 writes the files."""
    return strategy.cluster_resolver.task_id or 0 if num_hosts(strategy) > 1 else 0


def host_replicas(strategy: tf.distribute.Strategy) -> int:
    """Replicas that this process feeds."""
    return strategy.num_replicas_in_sync // num_hosts(strategy)


def common_step(steps: Sequence[int], strategy: tf.distribute.Strategy) -> int | None:
    """The newest of the steps that every host has; None if there is none."""
    if num_hosts(strategy) == 1:
        return max(steps, default=None)
    none = -1  # which every host has
    mine = tf.constant([none, *sorted(steps)], tf.int64)
    copies = strategy.experimental_distribute_values_from_function(lambda _: mine)
    found, counts = np.unique(strategy.gather(copies, axis=0), return_counts=True)
    newest = int(found[counts == strategy.num_replicas_in_sync].max())
    return None if newest == none else newest


@contextlib.contextmanager
def explain_lost_hosts(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Says of the errors that follow when another host is gone what to do.

    Raises:
      ValueError: in their place.
    """
    try:
        yield
    except HOST_IS_GONE as error:
        if num_hosts(strategy) == 1:
            raise
        text = " ".join(re.sub(r"\{\{.*?\}\}", "", error.message).split())
        found = re.search(r"Collective ops .*", text)
        reason = (found[0] if found else text).split(" Additional GRPC")[0]
        raise ValueError(
            f"host {host_index(strategy)} of {num_hosts(strategy)}: another host ended"
            f" or cannot be reached, so this one ends too ({reason[:200]}). See"
            " why in the output of the others; then start the same command on every"
            " host: they go on from the newest checkpoint that all of them have."
        ) from None


def hand_out(
    batch: dict[str, tf.Tensor], strategy: tf.distribute.Strategy
) -> dict[str, Any]:
    """Splits a host's batch along its first axis, a part for each of its replicas."""
    replicas = host_replicas(strategy)

    def split(tensor: tf.Tensor):
        parts = tf.split(tensor, replicas) if replicas > 1 else [tensor]
        return strategy.experimental_distribute_values_from_function(
            lambda context: parts[context.replica_id_in_sync_group % replicas]
        )

    return {name: split(tensor) for name, tensor in batch.items()}


def step_seed(seed: int, step: tf.Tensor, replica: tf.Tensor | int) -> tf.Tensor:
    """The stateless seed, int32 [2], of one replica's step: no draw depends on history.

    The low bits of the first word tell replicas apart, the second word the steps.
    """
    first = tf.constant(seed, tf.int32) * 65537 + tf.cast(replica, tf.int32)
    return tf.stack([first, tf.cast(step, tf.int32)])
