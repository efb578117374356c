"""Training on several devices: strategies, and corrections of Keras' mistakes on several replicas."""

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_sat import internals

__all__ = ["strategy"]

TF_CONFIG = '{"cluster": {"worker": ["host1:12345", "host2:12345"]}, "task": {"type": "worker", "index": 0}}'
NAMES = ("auto", "none", "mirrored", "multiworker", "tpu")


def strategy(name: str = "auto") -> tf.distribute.Strategy:
    """Returns a tf.distribute strategy. Build, compile and fit a model within its scope.

    Args:
        name: which strategy.
            "none": one device.
            "mirrored": one replica on each GPU of this machine, or on each logical CPU device if there is no GPU. Each
            call returns the same object.
            "multiworker": one replica on each GPU (or CPU) of every machine that the environment variable TF_CONFIG
            lists.
            "tpu": the TPU of this machine, or the TPU slice that the environment variable TPU_NAME names.
            "auto" (default): "multiworker" if TF_CONFIG lists several workers, otherwise "mirrored" if there are
            several GPUs, otherwise "none".

    Raises:
        ValueError: for an unknown name, a missing or invalid TF_CONFIG, or if there is no TPU.
        RuntimeError: for "multiworker", if TensorFlow has already executed an operation.
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
    """Returns the only MirroredStrategy over these devices.

    Each strategy object numbers its collective operations from the start, and TensorFlow's runtime remembers the shape
    of each number. With a second object in one process, synchronised batch norm fails with "Shape mismatch in the
    collective".
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
    """Returns the addresses of the workers in TF_CONFIG, [] if it is not set; raises ValueError if it is invalid."""
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
    except Exception as error:  # TensorFlow does not document the exception for a missing TPU
        raise ValueError(f"No TPU was found: {error}") from error
    return tf.distribute.TPUStrategy(resolver)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether this process writes the files: it is the chief, the first worker, or the only process."""
    resolver = strategy.cluster_resolver
    return resolver is None or resolver.task_type in (None, "", "chief") or resolver.task_id == 0


def has_several_workers(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether the strategy uses several processes (MultiWorkerMirroredStrategy)."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def from_chief(strategy: tf.distribute.Strategy, array: np.ndarray) -> np.ndarray:
    """Returns the chief's array on every worker. All workers must call this function.

    The values are sent as float64, which represents float32 and integers below 2^53 exactly.

    Args:
        strategy: the strategy of the workers.
        array: this worker's array, of the same shape and dtype on all workers. Only the chief's values are used.
    """

    @tf.function
    def total(value):
        context = tf.distribute.get_replica_context()
        return context.all_reduce("SUM", tf.where(context.replica_id_in_sync_group == 0, value, tf.zeros_like(value)))

    value = tf.constant(np.ravel(array), tf.float64)
    received = strategy.experimental_local_results(strategy.run(total, (value,)))[0]
    return received.numpy().astype(array.dtype).reshape(array.shape)


def number_from_chief(strategy: tf.distribute.Strategy, number: float) -> float:
    """Returns the chief's number on every worker, so that all decide alike. All workers must call this function."""
    return float(from_chief(strategy, np.asarray(number))) if has_several_workers(strategy) else number


def state_from_chief(
    strategy: tf.distribute.Strategy, settings: dict[str, Any], arrays: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the chief's settings and arrays on every worker. All workers must call this function.

    Args:
        strategy: the strategy of the workers.
        settings: a dict that JSON can hold. Only the chief's is used.
        arrays: {name: array}. Only the chief's are used. See `from_chief`.
    """
    shapes = {name: (array.shape, array.dtype.name) for name, array in arrays.items()}
    text = np.frombuffer(json.dumps([settings, shapes]).encode(), np.uint8)
    length = int(from_chief(strategy, np.asarray(len(text))))
    text = from_chief(strategy, np.resize(text, length))
    settings, shapes = json.loads(text.tobytes())
    nothing = {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}
    mine = arrays if is_chief(strategy) else nothing
    return settings, {name: from_chief(strategy, mine[name]) for name in nothing}


@contextlib.contextmanager
def report_lost_workers(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """A context that raises a short ConnectionError if another worker has ended or cannot be reached.

    It replaces TensorFlow's long errors about operations that waited for that worker.

    Raises:
        ConnectionError: if an operation fails because another worker has ended or cannot be reached.
    """
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.InternalError) as error:
        if not (has_several_workers(strategy) and "ollective" in error.message):
            raise
        raise ConnectionError(
            "Another worker has ended: training cannot continue without it. Give the same command on every worker "
            "again: the run continues from its last checkpoint."
        ) from error


def is_tpu(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether a strategy runs on TPUs, which need static shapes."""
    return isinstance(strategy, tf.distribute.TPUStrategy)


def needs_own_loop(strategy: tf.distribute.Strategy, steps_per_execution: int) -> bool:
    """Returns whether Keras' own train function fails with this strategy.

    It fails with several workers, and with several steps in one execution on several replicas.
    """
    return has_several_workers(strategy) or (steps_per_execution > 1 and strategy.num_replicas_in_sync > 1)


def make_step_function(
    strategy: tf.distribute.Strategy, step: Callable[[Any], dict[str, tf.Tensor]], steps_per_execution: int
) -> Callable[[Any], dict[str, tf.Tensor]]:
    """Returns a train or test function for Keras: it takes an iterator of batches and returns logs.

    Args:
        strategy: the strategy to run the step with.
        step: a function from a replica's batch to its logs, {name: scalar}.
        steps_per_execution: number of steps in one call. The logs are those of the last step, the mean over all
            replicas.
    """
    step = tf.autograph.experimental.do_not_convert(step)

    @tf.function
    def function(iterator):
        for _ in tf.range(steps_per_execution - 1):
            strategy.run(step, (next(iterator),))
        logs = strategy.run(step, (next(iterator),))
        return {name: strategy.reduce("MEAN", value, axis=None) for name, value in logs.items()}

    return function


def check(model: keras.Model, optimizer: keras.optimizers.Optimizer, strategy: tf.distribute.Strategy) -> None:
    """Raises ValueError for settings that give wrong results silently, or an obscure error, on several replicas.

    With one replica, nothing is checked.

    Args:
        model: the model to train.
        optimizer: its optimizer.
        strategy: the strategy that it is trained with.

    Raises:
        ValueError: for a batch norm that is not synchronised (its moving statistics would be those of one replica), and
            for `gradient_accumulation_steps` or `ema_overwrite_frequency` of the optimizer, which Keras cannot use on
            several replicas.
    """
    if strategy.num_replicas_in_sync == 1:
        return
    norms = [layer for layer in internals.all_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]
    unsynchronised = [norm.name for norm in norms if not norm.synchronized]
    if unsynchronised:
        raise ValueError(
            f"Under {strategy.num_replicas_in_sync} replicas batch norms must be synchronised, or the statistics that "
            f"are saved are one replica's: set layer.synchronized = True for all {len(unsynchronised)}, such as "
            f"{unsynchronised[0]}."
        )
    for option in ("gradient_accumulation_steps", "ema_overwrite_frequency"):
        if getattr(_inner(optimizer), option, None):
            raise ValueError(
                f"Keras cannot run {option} under {strategy.num_replicas_in_sync} replicas: leave it None. (Averaged "
                "weights are then written when fit ends; training.AveragedWeights evaluates with them before.)"
            )


def clip_summed_gradients(
    optimizer: keras.optimizers.Optimizer, gradients: Sequence[tf.Tensor | None]
) -> Sequence[tf.Tensor | None]:
    """Returns gradients for this replica with which `optimizer.apply` has the same effect as on one device.

    Keras clips the gradients of each replica, and then sums them. With loss scaling, it skips a step with an overflow
    only if the overflow is on the first replica. This function clips the sum over all replicas instead, and returns the
    clipped sum divided by the number of replicas, so that Keras does not clip it again. If a gradient overflows on any
    replica, all gradients are NaN on all replicas, and the step is skipped.

    Args:
        optimizer: the optimizer, whose clipping options are used. Its gradients may be scaled (LossScaleOptimizer).
        gradients: this replica's gradients, one for each weight; None for a weight that is not used.

    Returns:
        The gradients to apply. With one replica, `gradients` unchanged.
    """
    context = tf.distribute.get_replica_context()
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas == 1:
        return gradients
    given = [gradient for gradient in gradients if gradient is not None]
    if len(given) < len(gradients):  # Keras skips unused weights, with a warning
        clipped = iter(clip_summed_gradients(optimizer, given))
        return [None if gradient is None else next(clipped) for gradient in gradients]
    scale = 1.0
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        overflowed = tf.reduce_any([~tf.reduce_all(tf.math.is_finite(gradient)) for gradient in given])
        overflowed = context.all_reduce("SUM", tf.cast(overflowed, tf.float32)) > 0  # on any replica
        given = [tf.where(overflowed, tf.constant(float("nan"), gradient.dtype), gradient) for gradient in given]
        scale = tf.convert_to_tensor(optimizer.dynamic_scale) if optimizer.built else optimizer.initial_scale
    inner = _inner(optimizer)
    if not (inner.clipnorm or inner.global_clipnorm or inner.clipvalue):
        return given
    total = context.all_reduce("SUM", given)
    return [gradient / replicas for gradient in _clipped(inner, total, scale)]


def _clipped(optimizer, gradients, scale):
    """Returns gradients that are clipped as the optimizer's options say; `scale` is the loss scale of the gradients."""
    if optimizer.clipnorm:
        return [tf.clip_by_norm(gradient, optimizer.clipnorm * scale) for gradient in gradients]
    if optimizer.global_clipnorm:
        return tf.clip_by_global_norm(gradients, optimizer.global_clipnorm * scale)[0]
    limit = optimizer.clipvalue * scale
    return [tf.clip_by_value(gradient, -limit, limit) for gradient in gradients]


def pad_empty_replica(function: Callable[..., tf.Tensor], *tensors: tf.Tensor) -> tf.Tensor:
    """Returns function(*tensors), for a replica's share of a batch that may be empty.

    Convolutions fail on an empty batch. So an empty share is padded with one example of zeros, whose result is dropped.

    Args:
        function: a function from tensors [batch, ...] to a tensor [batch, ...].
        *tensors: its arguments, this replica's share of a batch.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return function(*tensors)
    number = tf.shape(tensors[0])[0]
    missing = tf.maximum(0, 1 - number)
    return function(*(tf.pad(x, [[0, missing]] + [[0, 0]] * (x.shape.rank - 1)) for x in tensors))[:number]


def _inner(optimizer):
    """Returns the optimizer inside a LossScaleOptimizer, or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)
