"""Training input from other machines, by tf.data service: its processes, its client.

  python -m tl_tf.data_service --port=5050                                dispatcher
  python -m tl_tf.data_service --port=5051 --dispatcher=grpc://HOST:5050  each worker
  python run.py --data_service=grpc://HOST:5050 ...

Workers read the records themselves, under the path that run.py was given.  Each draws
whole epochs, so the epochs of several workers are mixed, and one that is lost takes the
rest of its epoch along: an example comes at most once an epoch, and nothing tells where
a stopped run was.
"""

import argparse
import dataclasses
import socket
import sys

from tl_tf import startup

startup.quiet_tensorflow()

import tensorflow as tf  # noqa: E402

from tl_tf.inputs import split as splits  # noqa: E402

PREFETCH_BATCHES = 2
_OF_DATA = (
    tf.errors.DataLossError,
    tf.errors.InvalidArgumentError,
    UnicodeDecodeError,
)


def read_through(data: splits.Split, address: str) -> splits.Split:
    """The same training split, its batches made by the workers of a tf.data service.

    Args:
      data: opened for training, on this host.
      address: grpc://host:port of the dispatcher.

    Raises:
      ValueError: for a stream that counts what it passes over, which workers cannot.
    """
    if "passed_over" in data.batches.element_spec:
        raise ValueError(
            "--data_service: broken records cannot be passed over there, as its workers"
            " do not count together. Set train/clip_dataset.max_bad_records = 0, or"
            " leave out --data_service."
        )

    def explain(error: tf.errors.OpError) -> str:
        if isinstance(error, _OF_DATA):
            return data.explain(error)
        return (
            f"--data_service={address}: {error.message.splitlines()[0]}. See whether"
            " its processes run, and find the data under the same path."
        )

    service = tf.data.experimental.service
    batches = data.batches.apply(
        service.distribute(service.ShardingPolicy.DYNAMIC, address)
    )
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF  # each host has its part already
    )
    return dataclasses.replace(
        data,
        batches=batches.prefetch(PREFETCH_BATCHES).with_options(options),
        explain=explain,
    )


def main() -> None:
    """Runs a dispatcher or a worker until it is killed."""
    parser = argparse.ArgumentParser(
        prog="python -m tl_tf.data_service", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--port", type=int, required=True, help="where it listens")
    parser.add_argument("--dispatcher", help="of a worker: grpc://host:port")
    parser.add_argument(
        "--host", default=socket.gethostname(), help="of a worker: how others reach it"
    )
    flags = parser.parse_args()
    service = tf.data.experimental.service
    try:
        if flags.dispatcher is None:
            kind = "dispatcher"
            server = service.DispatchServer(service.DispatcherConfig(port=flags.port))
        else:
            kind = "worker"
            startup.probe_data_service(flags.dispatcher)
            server = service.WorkerServer(
                service.WorkerConfig(
                    dispatcher_address=flags.dispatcher.removeprefix("grpc://"),
                    worker_address=f"{flags.host}:{flags.port}",
                    port=flags.port,
                )
            )
    except (ValueError, tf.errors.OpError) as error:
        sys.exit(f"data_service: {error}")
    print(f"{kind} listens at {flags.port}", flush=True)
    server.join()


if __name__ == "__main__":
    main()
