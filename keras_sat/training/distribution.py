"""Which devices a run trains on, and what Keras gets wrong on several of them."""

import contextlib
import functools
import json
import os

import keras
import numpy as np
import tensorflow as tf

TF_CONFIG = '{"cluster": {"worker": ["host1:12345", "host2:12345"]}, "task": {"type": "worker", "index": 0}}'
NAMES = ("auto", "none", "mirrored", "multiworker", "tpu")


def strategy(name="auto"):
    """Returns a tf.distribute strategy; build, compile and fit within its scope.

    Args:
        name: "none": one device; "mirrored": one replica for each GPU of this machine (or for each logical CPU device,
            where there is no GPU), the same object at each call; "multiworker": the same on every machine that the
            environment variable TF_CONFIG names; "tpu": the TPU of this machine, or the slice that the environment
            variable TPU_NAME names; "auto": "multiworker" where TF_CONFIG names several workers, "mirrored" with
            several GPUs, else "none".

    Raises:
        ValueError: for an unknown name, no TF_CONFIG, or no TPU.
        RuntimeError: for "multiworker", if TensorFlow has computed something before.
    """
    if name == "auto":
        gpus = tf.config.list_physical_devices("GPU")
        name = "multiworker" if len(_workers()) > 1 else "mirrored" if len(gpus) > 1 else "none"
    if name == "none":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return _mirrored(tuple(device.name for device in devices))
    if name == "multiworker":
        return _multiworker()
    if name == "tpu":
        return _tpu()
    raise ValueError(f"strategy must be one of {', '.join(NAMES)}. Received: {name!r}")


@functools.cache
def _mirrored(devices):
    """Returns the one MirroredStrategy over these devices.

    Each strategy object numbers its collective operations from the start, and the runtime remembers the shape behind a
    number: with a second object in the process, synchronised batch norm fails with "Shape mismatch in the collective".
    """
    return tf.distribute.MirroredStrategy(devices)


@functools.cache
def _multiworker():
    if not _workers():
        raise ValueError(
            f"multiworker reads the environment variable TF_CONFIG, the same on every machine but for the index: "
            f"{TF_CONFIG}"
        )
    return tf.distribute.MultiWorkerMirroredStrategy()


def _workers():
    text = os.environ.get("TF_CONFIG") or "{}"
    try:
        config = json.loads(text)
        cluster, task = config.get("cluster", {}), config.get("task", {})
        workers = {kind: list(cluster.get(kind, [])) for kind in ("chief", "worker")}
        if cluster:
            host, port = workers[task["type"]][task["index"]].rsplit(":", 1)
            is_valid = bool(host) and 0 < int(port) < 2**16 and task["index"] >= 0
        else:
            is_valid = not task
    except (ValueError, AttributeError, KeyError, IndexError, TypeError):
        is_valid = False
    if not is_valid:
        raise ValueError(f"The environment variable TF_CONFIG must be as in {TF_CONFIG}. Received: {text}")
    return workers["chief"] + workers["worker"]


@functools.cache
def _tpu():
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except Exception as error:  # what is raised where there is no TPU is not documented
        raise ValueError(f"No TPU was found: {error}") from error
    return tf.distribute.TPUStrategy(resolver)


def is_chief(strategy):
    """Says whether this process is the one that writes files."""
    resolver = strategy.cluster_resolver
    return resolver is None or resolver.task_type in (None, "", "chief") or resolver.task_id == 0


def has_several_workers(strategy):
    """Says whether other processes train with this one."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def from_chief(strategy, array):
    """Returns the NumPy array that the chief gave, on every worker; all must call this, with arrays of one shape.

    Through float64, which holds what a training is made of exactly: float32, and integers below 2^53.
    """

    @tf.function
    def total(value):
        context = tf.distribute.get_replica_context()
        return context.all_reduce("SUM", tf.where(context.replica_id_in_sync_group == 0, value, tf.zeros_like(value)))

    value = tf.constant(np.ravel(array), tf.float64)
    received = strategy.experimental_local_results(strategy.run(total, (value,)))[0]
    return received.numpy().astype(array.dtype).reshape(array.shape)


@contextlib.contextmanager
def heeding_lost_workers(strategy):
    """Says in one line what TensorFlow says in many when another worker has ended, or cannot be reached.

    Raises:
        ConnectionError: then, in place of the errors of the operations that waited for that worker.
    """
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.InternalError) as error:
        if not (has_several_workers(strategy) and "ollective" in error.message):
            raise
        raise ConnectionError(
            "Another worker is gone: training cannot go on without it. Give the same command on every worker again; "
            "the run goes on from its last checkpoint."
        ) from error


def is_tpu(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether a strategy runs on TPUs, which need static shapes."""
    return isinstance(strategy, tf.distribute.TPUStrategy)


def needs_own_loop(strategy, steps_per_execution):
    """Says whether Keras' train function fails: with several workers, or several steps in one call on replicas."""
    return has_several_workers(strategy) or (steps_per_execution > 1 and strategy.num_replicas_in_sync > 1)


def loop(strategy, step, steps_per_execution):
    """Returns a train or test function as Keras wants it, from an iterator to logs: the mean over all replicas."""
    step = tf.autograph.experimental.do_not_convert(step)

    @tf.function
    def function(iterator):
        for _ in tf.range(steps_per_execution - 1):
            strategy.run(step, (next(iterator),))
        logs = strategy.run(step, (next(iterator),))
        return {name: strategy.reduce("MEAN", value, axis=None) for name, value in logs.items()}

    return function


def check(model, optimizer, strategy):
    """Refuses what would fail under several replicas with an error that helps nobody, or be wrong without a word.

    Raises:
        ValueError: for batch norms that are not synchronised, whose moving statistics would be one replica's, and for
            optimizer options that Keras cannot run there.
    """
    if strategy.num_replicas_in_sync == 1:
        return
    layers = getattr(model, "_flatten_layers", lambda: model.layers)()
    alone = [
        layer.name for layer in layers if isinstance(layer, keras.layers.BatchNormalization) and not layer.synchronized
    ]
    if alone:
        raise ValueError(
            f"Under {strategy.num_replicas_in_sync} replicas batch norms must be synchronised, or the statistics that "
            f"are saved are one replica's: set layer.synchronized = True for all {len(alone)}, such as {alone[0]}."
        )
    for option in ("gradient_accumulation_steps", "ema_overwrite_frequency"):
        if getattr(_inner(optimizer), option, None):
            raise ValueError(
                f"Keras cannot run {option} under {strategy.num_replicas_in_sync} replicas: leave it None. (Averaged "
                "weights are then written when fit ends; training.AveragedWeights evaluates with them before.)"
            )


def corrected(optimizer, gradients):
    """Returns each replica's gradients such that `optimizer.apply` does what it does on one device.

    Keras clips each replica's gradients, not their sum, and skips a step that overflowed if it did so on the first
    replica. Here all replicas get the sum, clipped and divided by their number (which is not clipped again), and a NaN
    if any of them is not finite.
    """
    context = tf.distribute.get_replica_context()
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas == 1:
        return gradients
    if any(g is None for g in gradients):  # of weights that are not used: Keras leaves those out, with a warning
        there = iter(corrected(optimizer, [g for g in gradients if g is not None]))
        return [None if g is None else next(there) for g in gradients]
    scale = 1.0
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        overflowed = tf.reduce_any([~tf.reduce_all(tf.math.is_finite(g)) for g in gradients])
        anywhere = context.all_reduce("SUM", tf.cast(overflowed, tf.float32)) > 0
        gradients = [tf.where(anywhere, tf.constant(float("nan"), g.dtype), g) for g in gradients]
        scale = tf.convert_to_tensor(optimizer.dynamic_scale) if optimizer.built else optimizer.initial_scale
    inner = _inner(optimizer)
    if not (inner.clipnorm or inner.global_clipnorm or inner.clipvalue):
        return gradients
    total = context.all_reduce("SUM", gradients)
    if inner.clipnorm:
        total = [tf.clip_by_norm(g, inner.clipnorm * scale) for g in total]
    elif inner.global_clipnorm:
        total, _ = tf.clip_by_global_norm(total, inner.global_clipnorm * scale)
    else:
        total = [tf.clip_by_value(g, -inner.clipvalue * scale, inner.clipvalue * scale) for g in total]
    return [g / replicas for g in total]


def not_empty(function, *tensors):
    """Returns function(*tensors) for a replica's share of a batch, which may be empty: convolutions fail on that."""
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return function(*tensors)
    number = tf.shape(tensors[0])[0]
    missing = tf.maximum(0, 1 - number)
    return function(*(tf.pad(x, [[0, missing]] + [[0, 0]] * (x.shape.rank - 1)) for x in tensors))[:number]


def _inner(optimizer):
    return getattr(optimizer, "inner_optimizer", optimizer)
