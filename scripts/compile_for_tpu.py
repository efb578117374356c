"""Compiles a training step for a TPU without having one, and prints the memory that it needs.

    python scripts/compile_for_tpu.py lower step.mlir --model=ResNet50 --image_size=224 --batch_size=32 --steps=1
    python -m venv jax-environment                                    # another than TensorFlow's
    jax-environment/bin/pip install jax==0.10.2 libtpu==0.0.52
    jax-environment/bin/python scripts/compile_for_tpu.py compile step.mlir --topology=v5e:2x2

`lower` writes what XLA is given of `AdversarialModel.train_step`, as StableHLO; `compile` has it compiled by the TPU's
own compiler, for one core. What it says is of one replica: `batch_size` is a replica's.
"""

import argparse
import os
import re
import time


def lower(trainer, shape, label_type="int64"):
    """Returns a compiled trainer's step on a batch of uint8 images of this shape as the text of a StableHLO module."""
    import tensorflow as tf

    @tf.function(jit_compile=True, autograph=False)
    def step(images, labels):
        return trainer.train_step((images, labels))

    images, labels = tf.zeros(shape, tf.uint8), tf.zeros(shape[:1], label_type)
    trainer.train_on_batch(images, labels)  # creates what the optimizer keeps
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
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # of a machine in Google's cloud, which this need not be
    import jax
    from jax.experimental import topologies
    from jax.interpreters import mlir
    from jaxlib import xla_client
    from jaxlib.mlir import ir

    with open(args.file, encoding="utf-8") as file:
        # TensorFlow copies what it assigns to a variable, by an operation that the TPU's compiler does not know.
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
        "outputs that are not these": memory.output_size_in_bytes - memory.alias_size_in_bytes,
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
        command.add_argument("file", help="of StableHLO")
    lowering.add_argument("--model", default="ResNet50")
    lowering.add_argument("--image_size", type=int, default=224)
    lowering.add_argument("--batch_size", type=int, default=32, help="of one replica")
    lowering.add_argument("--steps", type=int, default=1, help="of PGD")
    compiling.add_argument("--topology", default="v5e:2x2")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
