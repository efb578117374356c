"""All uses of private parts of Keras, TensorFlow and waitress, and of undocumented ones that can change in silence.

No other file uses private parts. (`AdversarialModel` overrides `make_train_function` and `make_test_function`, public
methods of Keras' trainer without documentation. The tests of several workers fail if Keras stops calling them.)

There is no public way to do these things. Each docstring says in which versions the function works, and what would
replace it. `tests/test_internals.py` has a canary test for each function: it fails when an upgrade breaks the function,
and when the library gets a new public name that may replace it.
"""

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from concurrent import futures
from typing import Any, TypeVar

import keras
import tensorflow as tf

T = TypeVar("T")


def all_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns a layer or model and all layers inside it, at any depth, also the layers in a list of a layer.

    Private: `Layer._flatten_layers`. Seen in Keras 3.12 to 3.15.
    Replaced by: a public method that does this. `Model.layers` has the first level only, other layers have no such
    attribute, and `tf.train.TrackableView` misses layers in lists.
    """
    return layer._flatten_layers()


def without_weights(function: Callable[..., T], *args: Any) -> T:
    """Returns `function(*args)`. The layers that the function makes never allocate their weights.

    Undocumented: within `keras.StatelessScope(initialize_variables=False)`, Keras puts new variables on a list instead
    of initialising them. It would initialise them at the end of the next scope of this thread. There is one list for
    each thread. So the function runs in a thread of its own, and the list disappears with it. Seen in Keras 3.12 to
    3.15.
    Replaced by: a public way to build layers without variables, or to empty the list.
    """

    def run() -> T:
        with keras.StatelessScope(initialize_variables=False):
            return function(*args)

    with futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()


def batch_count(optimizer: keras.optimizers.Optimizer) -> keras.Variable:
    """Returns the number of gradients that an optimizer was given: with gradient accumulation, one for each batch.

    A learning rate schedule gets this number. `optimizer.iterations` counts updates of the weights.

    Private: `Optimizer._iterations`. Seen in Keras 3.12 to 3.15.
    Replaced by: a public property of the optimizer.
    """
    return getattr(optimizer, "inner_optimizer", optimizer)._iterations


def skip_steps(
    model: keras.Model,
    steps: int,
    logs: Mapping[str, Any] | None = None,
    after: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> None:
    """Makes `fit` count the next steps without running them, and without reading their batches.

    Call it in `on_epoch_begin` of a callback.

    Undocumented: `Model.train_function`, which `fit` looks up before each step. Seen in Keras 3.12 to 3.15.
    Replaced by: an argument of `fit` for the step of an epoch at which it begins. (`initial_epoch` counts epochs only.)

    Args:
        model: the model that `fit` trains.
        steps: number of steps to skip.
        logs: the logs of the last skipped step. All others have no logs. Default: none.
        after: a function that is called once, after the first step that is run. It gets the logs of this step, and
            returns those that the callbacks get.
    """
    take_step, left = model.train_function, steps

    def skip(iterator: Iterator[Any]) -> Any:
        nonlocal left
        if left > 0:
            left -= model.steps_per_execution
            return dict(logs or {}) if left <= 0 else {}
        model.train_function = take_step
        return after(take_step(iterator)) if after else take_step(iterator)

    model.train_function = skip


class FirstBatch:
    """Base class of a model that checks its first batch on the host, before the first step.

    List it before keras.Model in the bases of the class. XLA drops the assertions of a graph, so data are checked here.
    `see_first_batch` is called once for each dataset of `fit` and `evaluate`, and for each `train_on_batch` and
    `test_on_batch`.

    It also makes the variables of metrics and optimizer before the first step. Without a strategy, Keras makes them
    while it traces the step, and so it traces the step twice.

    Private: `Model._maybe_symbolic_build`, the only method that Keras calls with the data before the first step. With
    several workers, Keras' own method would average the batch over the workers, which fails. Private as well:
    `Model._symbolic_build`, which makes the variables, and `_first_batches` and `_dataset` of the iterator's
    `data_adapter`. Seen in Keras 3.12 to 3.15.
    Replaced by: a public method or callback that receives the first batch.
    """

    def see_first_batch(self, batch: Any) -> None:
        """Checks the first batch. Subclasses implement this method.

        Args:
            batch: (images, labels) or (images, labels, sample weights), as `fit` gets them. With several replicas: the
                first replica's part of the batch.

        Raises:
            ValueError: for a batch that the model cannot be trained or evaluated on.
        """
        raise NotImplementedError

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        if iterator is not None:
            if iterator in _seen:  # the validation data of a later epoch; the model was built by the first one
                return
            _seen.add(iterator)
            _check_ends(iterator)
            data_batch = _first_batch(iterator, self.distribute_strategy)  # type: ignore[attr-defined]
        if data_batch is None:  # no batch is left, after a run that was killed behind its last step
            return
        self.see_first_batch(data_batch)
        with self.distribute_strategy.scope():  # type: ignore[attr-defined]
            self._symbolic_build(data_batch=data_batch)  # type: ignore[attr-defined]


_seen: weakref.WeakSet = weakref.WeakSet()  # Keras' iterators whose first batch was seen


def _check_ends(iterator):
    """Raises ValueError for an infinite dataset if `fit` or `evaluate` was given no number of steps."""
    dataset = getattr(iterator.data_adapter, "_dataset", None)  # adapters of arrays and generators have none
    is_endless = isinstance(dataset, tf.data.Dataset) and dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    if is_endless and iterator.steps_per_epoch is None:
        raise ValueError(
            "The dataset never ends (.repeat()): say steps_per_epoch in fit, validation_steps for its validation data, "
            "steps in evaluate."
        )


def _first_batch(iterator, strategy):
    """Returns the first batch of the data, or the first replica's part of it; None if the data are empty."""
    batches = getattr(iterator.data_adapter, "_first_batches", None)  # of a generator, which cannot be read twice
    if batches:
        return batches[0]
    for _, _, batches in iterator:
        try:
            return tf.nest.map_structure(functools.partial(_first_replica, strategy), next(batches))
        except (StopIteration, tf.errors.OutOfRangeError):
            break
    return None


def _first_replica(strategy, value):
    return strategy.experimental_local_results(value)[0]


def close_waitress(server: Any, connections: MutableMapping[int, Any], grace: float) -> None:
    """Ends a waitress server that runs in another thread: its requests first, then its `run`.

    Undocumented: `server.task_dispatcher`, `server.trigger`, and the module `waitress.wasyncore`. `server.close` must
    be called in the thread that runs the server; called here, it would not wake that thread. Seen in waitress 3.0.2.
    Replaced by: a method that ends `run` from another thread.

    Args:
        server: the object that `waitress.create_server` returned.
        connections: the dict that was passed to `create_server` as `map`.
        grace: seconds to wait for running requests to finish.
    """
    from waitress import wasyncore  # installed by the extra `serve`

    server.task_dispatcher.shutdown(timeout=grace)
    server.trigger.pull_trigger(lambda: wasyncore.close_all(connections))  # runs in the server's own thread
