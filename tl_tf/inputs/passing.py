"""Training past bad records: which were passed over, and how many may be.

An op that fails ends the stream, unless tf.data drops the element.  Elements are
therefore numbered before; a gap in the numbers afterwards tells what was dropped.  The
stream stays the same for any number of threads, and its iterator can be saved.
"""

import tensorflow as tf

SHOWN = 64  # of the latest that were passed over: what a batch tells of them

Tensors = dict[str, tf.Tensor]


def fill_gaps(dataset: tf.data.Dataset, blank: Tensors, *, length) -> tf.data.Dataset:
    """Drops what fails, and puts a blank in its place.

    Args:
      dataset: of dicts; their `number`, int64 [], counts from 0.
      blank: an element without number, of the same types and shapes.
      length: int64 [], how many there should be.
    """
    end = tf.data.Dataset.from_tensors({**blank, "number": length})

    def note_gap(before: tf.Tensor, element: Tensors):
        return element["number"], (before + 1, element)

    def fill(first: tf.Tensor, element: Tensors) -> tf.data.Dataset:
        blanks = tf.data.Dataset.range(first, element["number"])
        blanks = blanks.map(lambda number: {**blank, "number": number})
        return blanks.concatenate(tf.data.Dataset.from_tensors(element))

    numbered = dataset.ignore_errors(log_warning=False).concatenate(end)
    numbered = numbered.scan(tf.constant(-1, tf.int64), note_gap)
    return numbered.flat_map(fill).filter(lambda element: element["number"] < length)


def drop_failing(
    dataset: tf.data.Dataset, function, *, share: float, num_records: int, name_of
) -> tf.data.Dataset:
    """Maps in parallel, drops what fails, and stops where that is too much.

    Args:
      dataset: of dicts with `epoch`, int64 [], and `place`, int64 [2]; the last one of
        each epoch has the place -1, and says no more than that the epoch ends.
      function: of an element.
      share: of an epoch's records that may fail.
      num_records: in an epoch.
      name_of: a function of a place: string [], for the error.

    Returns:
      What `function` gives, and `passed_over`: {count int64 [], of all that were passed
      over until here; places int64 [SHOWN, 2], the latest of them, the last one last}.
    """
    limit = int(share * num_records)
    no_places = tf.fill([SHOWN, 2], tf.constant(-1, tf.int64))
    zero = tf.constant(0, tf.int64)

    def number(state, element: Tensors):
        count, recent = state
        recent = tf.concat([recent[1:], element["place"][tf.newaxis]], axis=0)
        return (count + 1, recent), {**element, "number": count, "recent": recent}

    def apply(element: Tensors) -> Tensors:
        marks = {key: element.pop(key) for key in ("epoch", "number", "recent")}
        is_end = element.pop("place")[0] < 0
        specs = blank_specs(function, element)
        found = tf.cond(is_end, lambda: blank_of(specs), lambda: function(element))
        return {"found": found, "is_end": is_end, **marks}

    def note_gap(state, element: Tensors):
        before, epoch, in_epoch, count, places = state
        gap = element["number"] - before - 1
        shown = tf.minimum(gap, SHOWN - 1)
        dropped = element["recent"][SHOWN - 1 - shown : SHOWN - 1]
        places = tf.concat([places, dropped], axis=0)[-SHOWN:]
        places = tf.ensure_shape(places, [SHOWN, 2])
        in_epoch = tf.where(tf.equal(element["epoch"], epoch), in_epoch, 0) + gap
        message = tf.strings.join(
            [name_of(places[-1]), ": one of ", tf.strings.as_string(in_epoch)]
            + [f" bad records in an epoch of {num_records}, max_bad_records={share:g}"]
            + [" allows fewer. python -m data.verify lists them all; delete their"]
            + [" shards and reports, and run the data.build command again."]
        )
        with tf.control_dependencies(
            [tf.debugging.Assert(in_epoch <= limit, [message])]
        ):
            count += gap
        found = {
            **element["found"],
            "passed_over": {"count": count, "places": places},
            "is_end": element["is_end"],
        }
        return (element["number"], element["epoch"], in_epoch, count, places), found

    return (
        dataset.scan((zero, no_places), number)
        .map(apply, num_parallel_calls=tf.data.AUTOTUNE)
        .ignore_errors(log_warning=False)
        .scan((zero - 1, zero - 1, zero, zero, no_places), note_gap)
        .filter(lambda element: tf.logical_not(element["is_end"]))
        .map(lambda element: {k: v for k, v in element.items() if k != "is_end"})
    )


def end_of_epoch(element_spec) -> tf.data.Dataset:
    """The element that ends an epoch, for `drop_failing`; it lacks `epoch`."""
    blank = blank_of(element_spec)
    blank["place"] -= 1
    return tf.data.Dataset.from_tensors(blank)


def blank_of(specs):
    """Zeros and empty strings."""
    return tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), specs)


def blank_specs(function, element: Tensors):
    """Types and shapes of what a function gives, from its graph alone."""
    concrete = tf.function(function, autograph=False).get_concrete_function(
        tf.nest.map_structure(tf.TensorSpec.from_tensor, element)
    )
    return concrete.structured_outputs
