"""Builds shards on a cluster with Apache Beam; the only module that imports it.

Every worker must see the same folders under the same names, on a shared file system,
and have this repository and requirements.txt installed.
"""

from collections.abc import Sequence

from data import isolated, shards


def run(work: Sequence[shards.Shard], runner: str, arguments: Sequence[str]) -> None:
    """Builds all shards with a Beam runner; returns when they are done.

    Args:
      work: the shards; Reshuffle spreads them over the workers.
      runner: the runner's name, such as FlinkRunner.
      arguments: the remaining command line, for Beam's PipelineOptions.

    Raises:
      ValueError: when Beam is not installed.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ValueError(
            f"--runner={runner} needs Apache Beam ({error}). Install it with:"
            " pip install -r requirements-beam.txt"
        ) from error
    options = PipelineOptions([f"--runner={runner}", *arguments])
    with beam.Pipeline(options=options) as pipeline:
        (
            pipeline
            | "Shards" >> beam.Create(list(work))
            | "Spread" >> beam.Reshuffle()
            | "Build" >> beam.Map(_build)
        )


def _build(shard: shards.Shard) -> str:
    # The reports stay in files: a pipeline's result need not come back to the caller.
    with isolated.Workers(1, shard.timeout_seconds) as workers:
        shards.build_shard(shard, workers)
    return shard.path.name
