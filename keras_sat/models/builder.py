"""Makes the public builders of networks: their signature, as in keras.applications, the input and the head."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol, cast

import keras

from keras_sat.models import normalization as normalization_lib
from keras_sat.models import weights as weights_lib
from keras_sat.models.normalization import PUBLISHED, Normalization
from keras_sat.typing import Path

_DOC = """Builds {name} with `activation` at every nonlinearity{sites}.

    Args:
        include_top: whether the network ends in global average pooling and a dense layer of `classes` outputs.
        weights: None (random weights); "sat-imagenet" or another tag of `keras_sat.models.list_weights()`, downloaded
            on first use ("sat-fashion-mnist" is part of the package); or the path of a `.weights.h5` file of this
            network. If the weights of a tag have another number of classes than `classes`, the head keeps its random
            weights, with a warning.
        input_tensor: a Keras tensor of pixels that is the input of the network, in place of `input_shape`.
        input_shape: (height, width, channels), with 1 or 3 channels. Default: the input shape of the weights, or
            {shape}. Height and width may be None. Pixels are 0..255, RGB, uint8 or float32; the model normalizes them.
        pooling: with include_top=False, the pooling of the feature map: None, "avg" or "max".
        classes: number of classes. Default: the number of classes of the weights, or {classes}.
        classifier_activation: None for logits, which attacks and training need; or "softmax".
        activation: the activation at every nonlinearity, {activation!r} by default. See
            `keras_sat.activations.layer`; for example {{"name": "gelu", "approximate": False}}.
        {variant}: the published variant: {forms}. Weights of one variant do not fit another.
        normalization: how the model normalizes pixels: None for pixels / 255; "cifar10", "cifar100" or "imagenet" for
            (pixels / 255 - mean) / std with the published mean and std of that dataset; or (mean, std) of images in
            0..1, two numbers or a value for each channel. For grey images, the three values of a name are averaged.
            Default: "published", that of the weights' publication, or that of the variant: {normalization}.
        name: name of the model.

    Returns:
        A functional keras.Model; its logits are float32.

    Raises:
        ValueError: for invalid arguments, or weights that do not fit this network.
    """


@dataclasses.dataclass(frozen=True)
class Form:
    """A published variant of a network.

    Attributes:
        trunk: function from a Keras tensor of normalized images and an activation to a feature map.
        kernel_initializer: function that returns the initializer of the dense layer. Each model needs a new one,
            because an initializer draws its seed when it is created.
        normalization: the published normalization; see `normalization.apply`.
        activation: the activation of most published checkpoints. It is not the default of the builder.
        input_shape: the default (height, width, channels).
        top: function that applies the layers between global average pooling and the dense layer; None for none.
        head: name of the dense layer.
        classes: the default number of classes.
    """

    trunk: Callable[[keras.KerasTensor, Any], keras.KerasTensor]
    kernel_initializer: Callable[[], keras.initializers.Initializer]
    normalization: Normalization = None
    activation: Any = "relu"
    input_shape: tuple[int, int, int] = (224, 224, 3)
    top: Callable[[keras.KerasTensor], keras.KerasTensor] | None = None
    head: str = "linear"
    classes: int = 1000


class Builder(Protocol):
    """A public function that builds a network, such as `models.ResNet50`.

    Attributes:
        forms: {name of a published variant: the variant}.
        form: the default variant.
        variant: name of the argument that chooses the variant: "form" or "stem".
        activation: the default activation.
    """

    __name__: str
    __qualname__: str
    forms: dict[str, Form]
    form: str
    variant: str
    activation: Any

    def __call__(self, *args: Any, **kwargs: Any) -> keras.Model: ...


def builder(
    name: str, forms: dict[str, Form], *, activation: Any = "silu", variant: str = "form", sites: str = ""
) -> Builder:
    """Returns the public function that builds the network `name`.

    Args:
        name: name of the function, and the default name of its models.
        forms: {name of a published variant: the variant}; the first one is the default.
        activation: the default activation.
        variant: name of the argument that chooses the variant.
        sites: text for the docstring, about nonlinearities that a reader may not expect.
    """
    architecture, default_activation, first = name, activation, next(iter(forms))

    def build(
        include_top: bool = True,
        weights: Path | None = None,
        input_tensor: keras.KerasTensor | None = None,
        input_shape: tuple[int | None, int | None, int] | None = None,
        pooling: str | None = None,
        classes: int | None = None,
        classifier_activation: str | None = None,
        activation: Any = default_activation,
        form: str = first,
        normalization: Normalization = PUBLISHED,
        name: str = name,
    ) -> keras.Model:
        if form not in forms:
            raise ValueError(f"{variant} of {architecture} must be one of {', '.join(forms)}. Received: {form!r}")
        published = forms[form]
        given = input_shape if input_tensor is None else _inputs(input_tensor).shape[1:]
        source = weights_lib.resolve(
            weights, architecture, activation, given and tuple(given), form=form, normalization=normalization
        )
        shape, number, own_normalization = _defaults(published, source)
        classes = number if classes is None else classes
        _check_head(pooling, classes, classifier_activation)
        inputs = _inputs(input_tensor, input_shape or shape)
        normalization = own_normalization if normalization == PUBLISHED else normalization
        outputs = published.trunk(normalization_lib.apply(inputs, normalization), activation)
        if include_top:
            outputs = keras.layers.GlobalAveragePooling2D(name="avg_pool")(outputs)
            outputs = published.top(outputs) if published.top else outputs
            # The dense layer stays in float32 under mixed precision.
            outputs = keras.layers.Dense(
                classes,
                classifier_activation,
                kernel_initializer=published.kernel_initializer(),
                dtype="float32",
                name=published.head,
            )(outputs)
        elif pooling:
            outputs = _POOLS[pooling](name=f"{pooling}_pool")(outputs)
        sources = keras.utils.get_source_inputs(inputs)
        # Keras warns at each call of a model that was made with a list of one input.
        model = keras.Model(sources[0] if len(sources) == 1 else sources, outputs, name=name)
        options = {"activation": activation, "form": form, "normalization": normalization}
        weights_lib.load(model, source, build_network=functools.partial(build, **options))
        return model

    public = cast(Builder, build if variant == "form" else _with_argument(build, "form", variant))
    public.__name__ = public.__qualname__ = name
    public.__doc__ = _DOC.format(
        name=name,
        shape=_by_form(forms, "input_shape"),
        classes=_by_form(forms, "classes"),
        sites=sites,
        variant=variant,
        forms=_listed(forms),
        activation=default_activation,
        normalization=_by_form(forms, "normalization"),
    )
    public.forms, public.form, public.variant, public.activation = forms, first, variant, activation
    return public


def _with_argument(function, name, new_name):
    """Returns a function that is called like `function`, but whose argument `name` is called `new_name`."""
    signature = inspect.signature(function)
    arguments = [
        argument.replace(name=new_name) if argument.name == name else argument
        for argument in signature.parameters.values()
    ]
    signature = signature.replace(parameters=arguments)

    def call(*args, **kwargs):
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        return function(*given.args)

    call.__signature__ = signature
    return call


def _defaults(form, source):
    """Returns input shape, number of classes and normalization of the weights, or else of the form."""
    if isinstance(source, dict):
        return *weights_lib.shape_and_classes(source), source.get("normalization", form.normalization)
    height, width, channels = form.input_shape
    if source is None:
        return form.input_shape, form.classes, form.normalization
    own_channels, classes = weights_lib.channels_and_classes(source, form.head)
    return (height, width, own_channels or channels), classes or form.classes, form.normalization


def _listed(forms):
    names = [f'"{form}"' for form in forms]
    return f"{names[0]}, the only one" if len(names) == 1 else f"{names[0]} (default) or {', '.join(names[1:])}"


def _by_form(forms, attribute):
    """Returns a text such as 'None for "small", "imagenet" for "torchvision"', or one value if all are the same."""
    values = {name: repr(getattr(form, attribute)).replace("'", '"') for name, form in forms.items()}
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f'{value} for "{name}"' for name, value in values.items())


_POOLS = {"avg": keras.layers.GlobalAveragePooling2D, "max": keras.layers.GlobalMaxPooling2D}


def _inputs(input_tensor, input_shape=None):
    if input_tensor is None:
        inputs = keras.Input(input_shape)
    elif keras.utils.is_keras_tensor(input_tensor):
        inputs = input_tensor
    else:
        raise ValueError(f"input_tensor must be a keras.Input or another Keras tensor. Received: {input_tensor!r}")
    if inputs.shape[-1] not in (1, 3) or len(inputs.shape) != 4:
        raise ValueError(
            "The input must be an image with 1 or 3 channels, channels last, such as input_shape=(224, 224, 3). "
            f"Received input shape: {inputs.shape[1:]}"
        )
    return inputs


def _check_head(pooling, classes, classifier_activation):
    if pooling not in (None, *_POOLS):
        raise ValueError(f'pooling must be None, "avg" or "max". Received: {pooling!r}')
    if not (isinstance(classes, int) and classes >= 1):
        raise ValueError(f"classes must be an integer >= 1. Received: {classes!r}")
    if classifier_activation not in (None, "softmax"):
        raise ValueError(
            f'classifier_activation must be None (logits) or "softmax". Received: {classifier_activation!r}'
        )
