#!/usr/bin/env bash
# Measures this package's steps and attacks on a GPU whose machine has jax and PyTorch, but no TensorFlow and no network.
#
#   scripts/measure_on_gpu.sh prepare gpu              # where keras_sat is installed: writes the folder gpu
#   bash gpu/measure_on_gpu.sh measure gpu             # where the GPU is; the folder is all that it needs
#   scripts/measure_on_gpu.sh finish gpu               # where keras_sat is installed: evaluates what was trained
#
# `measure` prints, and writes to gpu/figures.txt and gpu/*.json:
#   - ResNet-50, 224 px, bfloat16: a PGD-1 training step and a plain one, batches of 128 and 256;
#   - PGD-10 on the same network, batches of 128, and beside it a loop in PyTorch (channels last, bfloat16, torch.compile;
#     torchattacks too where it is installed);
#   - a WideResNet-16-4 trained with PGD-10 on the whole of Fashion-MNIST. `prepare` needs that dataset: run
#     scripts/import_fashion_mnist.py before.
# It goes on after a failure, and ends with status 1 then. PYTHON=... names another Python than python3. `speed` and
# `train` in place of `measure` do a part: the times of ResNet-50, and the training.
#
# Variables of the environment make everything smaller, to try it on a CPU:
#   ALLOW_CPU=1 SIZE=32 BATCHES="4 8" NETWORK=ResNet8 DATASET=fashion_mnist_mini EPOCHS=1 STEPS=20 \
#       scripts/measure_on_gpu.sh ...
set -euo pipefail
what=${1:?prepare, measure, speed, train or finish} folder=${2:?a folder}
PYTHON=${PYTHON:-python3}
SIZE=${SIZE:-224} BATCHES=${BATCHES:-128 256} STEPS=${STEPS:-60}
NETWORK=${NETWORK:-WideResNet16_4} DATASET=${DATASET:-fashion_mnist} EPOCHS=${EPOCHS:-5}
here=$(dirname "$0")
first=${BATCHES%% *}

prepare() {
    mkdir -p "$folder"
    rm -rf "$folder/trained" "$folder/trained.npz" "$folder/attacked.npz" "$folder"/resnet50-*
    cp "$0" "$here/run_on_pjrt.py" "$here/../benchmarks/pgd_in_pytorch.py" "$folder"
    "$PYTHON" "$here/run_on_pjrt.py" lower "$folder/trained" --model="$NETWORK" --dataset="$DATASET" \
        --epsilon=25.5 --steps=10 --step_size=6.375 --attack_precision=mixed_bfloat16 --optimizer=sgd --learning_rate=0.1 \
        --weight_decay=0.0001 --label_smoothing=0.1 --warmup_epochs=1 --epochs="$EPOCHS" --batch_size=128 --with_images \
        --attack=pgd-50 --attack_batch_size=1000 --test_split='test[:1000]'
    for batch in $BATCHES; do
        "$PYTHON" "$here/run_on_pjrt.py" lower "$folder/resnet50-$batch" --model=ResNet50 --dataset=fashion_mnist_mini \
            --image_size="$SIZE" --channels=3 --classes=1000 --epsilon=4 --steps=1 --optimizer=sgd --learning_rate=0.1 \
            --precision=mixed_bfloat16 --batch_size="$batch" --without_weights --all_steps
    done
    du -sh "$folder"
}

run() {
    local name=$1 function=$2
    shift 2
    echo "--- $name, $function"
    rm -f "$folder/$name-$function.json"
    "$PYTHON" "$here/run_on_pjrt.py" run "$folder/$name" --function="$function" \
        --report="$folder/$name-$function.json" "$@" || fail "This one failed; the others go on."
}

fail() {
    echo "$1"
    failures=$((failures + 1))
}

find_device() {
    failures=0
    device=$("$PYTHON" -c 'import jax; print(jax.devices()[0].platform)')
    if [ "$device" = cpu ] && [ -z "${ALLOW_CPU:-}" ]; then
        echo "jax finds no GPU here. Install jax with its CUDA plugin, or say ALLOW_CPU=1 to measure the CPU."
        exit 2
    fi
}

speed() {
    run "resnet50-$first" step --train_steps="$STEPS"
    run "resnet50-$first" plain --train_steps="$STEPS"
    "$PYTHON" "$here/pgd_in_pytorch.py" --batch_size="$first" --image_size="$SIZE" \
        --device="$([ "$device" = cpu ] && echo cpu || echo cuda)" ||
        fail "PyTorch or torchvision is missing, or failed: its figures are not here."
    run "resnet50-$first" pgd-10 --train_steps="$STEPS"
    for batch in ${BATCHES#"$first"}; do
        run "resnet50-$batch" step --train_steps="$STEPS"
        run "resnet50-$batch" plain --train_steps="$STEPS"
    done
}

train() {
    rm -f "$folder/trained.npz" "$folder/attacked.npz"
    run trained step --output="$folder/trained.npz"
    run trained pgd-50 --values="$folder/trained.npz" --output="$folder/attacked.npz"
}

measure() {
    find_device
    for part in "$@"; do $part; done
    [ "$failures" = 0 ]
}

finish() {
    "$PYTHON" "$here/run_on_pjrt.py" judge "$folder/trained" "$folder/attacked.npz" --values="$folder/trained.npz"
    rm -rf "$folder/run"
    "$PYTHON" "$here/run_on_pjrt.py" weights "$folder/trained" "$folder/trained.npz" "$folder/run"
    "$PYTHON" -m keras_sat evaluate "$folder/run" --split='test[:1000]'
}

case $what in
prepare) prepare ;;
measure) measure speed train 2>&1 | tee "$folder/figures.txt" ;;
speed | train) measure "$what" 2>&1 | tee "$folder/figures-$what.txt" ;;
finish) finish ;;
*) echo "Say prepare, measure, speed, train or finish. Received: $what" >&2 && exit 2 ;;
esac
