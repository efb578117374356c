"""Compiles a training step for a TPU on a machine without a TPU, and prints the memory that the step needs.

    python scripts/compile_for_tpu.py lower step.mlir --model=ResNet50 --image_size=224 --batch_size=32 --steps=1
    python -m venv jax-environment                                    # separate from TensorFlow's environment
    jax-environment/bin/pip install jax==0.10.2 libtpu==0.0.52
    jax-environment/bin/python scripts/compile_for_tpu.py compile step.mlir --topology=v5e:2x2

`lower` writes `AdversarialModel.train_step` as a StableHLO module, the input of XLA. `compile` compiles the module for
one TPU core with the TPU's compiler. The batch size and the memory are those of one replica.
"""

import argparse
import os
import re
import time


def lower(trainer, shape, label_type="int64"):
    """Returns the training step of a compiled trainer as the text of a StableHLO module.

    Args:
        trainer: an AdversarialModel, compiled.
        shape: shape of a batch of uint8 images.
        label_type: dtype of the labels, [batch].
    """
    import tensorflow as tf

    @tf.function(jit_compile=True, autograph=False)
    def step(images, labels):
        return trainer.train_step((images, labels))

    images, labels = tf.zeros(shape, tf.uint8), tf.zeros(shape[:1], label_type)
    trainer.train_on_batch(images, labels)  # creates the optimizer's variables
    return step.experimental_get_compiler_ir(images, labels)(stage="stablehlo")


def _lower(args):
    import keras

    import keras_sat
    from keras_sat.attacks import PGD, LinfBall

    keras.config.set_dtype_policy("mixed_bfloat16")
    model = keras_sat.models.BUILDERS[args.model](input_shape=(args.image_size, args.image_size, 3))
    trainer = keras_sat.training.AdversarialModel(model, PGD(LinfBall(4), steps=args.steps, clean_start=0.2))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.SGD(0.1, 0.9, nesterov=True), loss, metrics=["accuracy"], jit_compile=False)
    text = lower(trainer, (args.batch_size, args.image_size, args.image_size, 3))
    with open(args.file, "w", encoding="utf-8") as file:
        file.write(text)
    print(f"{args.file}: {len(text.splitlines())} lines")


def _compile(args):
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not query the metadata server of Google Cloud
    import jax
    from jax.experimental import topologies
    from jax.interpreters import mlir
    from jaxlib import xla_client
    from jaxlib.mlir import ir

    with open(args.file, encoding="utf-8") as file:
        # TensorFlow copies values that it assigns to variables. The TPU's compiler does not know this operation.
        text = re.sub(r"mhlo\.copy (%\S+)", r"stablehlo.optimization_barrier \1", file.read())
    device = topologies.get_topology_desc(args.topology, platform="tpu").devices[0]
    start = time.perf_counter()
    with mlir.make_ir_context():
        compiled = device.client.compile(ir.Module.parse(text), xla_client.DeviceList((device,)))
    seconds = time.perf_counter() - start
    print(f"{args.file} compiles for a {device.device_kind} in {seconds:.0f} s (jax {jax.__version__})")
    memory = compiled.get_compiled_memory_stats()
    needed = {
        "weights, optimizer, batch": memory.argument_size_in_bytes,
        "other outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    for name, size in {**needed, "all of it": sum(needed.values())}.items():
        print(f"    {name:<28}{size / 2**20:10.1f} MiB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    lowering, compiling = commands.add_parser("lower"), commands.add_parser("compile")
    lowering.set_defaults(run=_lower)
    compiling.set_defaults(run=_compile)
    for command in (lowering, compiling):
        command.add_argument("file", help="the StableHLO module")
    lowering.add_argument("--model", default="ResNet50")
    lowering.add_argument("--image_size", type=int, default=224)
    lowering.add_argument("--batch_size", type=int, default=32, help="images for one replica")
    lowering.add_argument("--steps", type=int, default=1, help="steps of PGD")
    compiling.add_argument("--topology", default="v5e:2x2")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
