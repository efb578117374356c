"""Makes the runs of the study `resnet20` on a GPU whose machine has jax, but no TensorFlow.

    python studies/on_gpu.py prepare runs/resnet20   # where keras_sat is: lowers the trainings and attacks
    python resnet20/on_gpu.py measure resnet20       # where the GPU is: the folder is all that it needs
    python studies/on_gpu.py finish runs/resnet20    # where keras_sat is: judges, evaluates and records

`smooth_activations.py --study=resnet20` makes runs with the same settings on a CPU, with TensorFlow. Runs of a GPU see
the images in another order, and have no validation and no guard. `finish` counts, with TensorFlow and in float32, the
adversarial images of the attacks that the GPU computed. It makes the other evaluations of the study here, and writes
studies/resnet20.json. Each command goes on where it was killed.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPT, TRAINED = "run_on_pjrt.py", "trained.npz"
STUDY = "resnet20"
# What the GPU computes of each evaluation: ({row of the record: attack}, test images).
EVALUATIONS = {
    "pgd-50": ({"PGD-50": "pgd-50"}, 2000),
    "autoattack-short": ({"AutoAttack-short": "autoattack-short"}, 1000),
    "beyond": ({"PGD-50": "pgd-50@31.875", "APGD-T": "apgd-t@31.875", "Square": "square@31.875"}, 200),
}
ATTACKS = {attack: number for rows, number in EVALUATIONS.values() for attack in rows.values()}
BATCH = 200  # images that are attacked at once
NOT_LOWERED = ("schedule", "validation_split", "keep", "guard")  # cosine is the default; there is no validation


def prepare(folder):
    """Lowers all runs into a folder, with the images and the scripts."""
    from smooth_activations import STUDIES, activation

    os.makedirs(folder, exist_ok=True)
    for path in (os.path.abspath(__file__), os.path.join(HERE, "..", "scripts", SCRIPT)):
        shutil.copy(path, folder)
    flags = [f"--{name}={value}" for name, value in STUDIES[STUDY].training.items() if name not in NOT_LOWERED]
    flags += [f"--attack={','.join(ATTACKS)}", f"--attack_batch_size={BATCH}"]
    images = ("images.npz", "test_images.npz")
    for name in STUDIES[STUDY].names():
        kind, seed = name.rsplit("-", 1)
        run = os.path.join(folder, name)
        if os.path.exists(run):
            _check_settings(run, STUDIES[STUDY])
            continue
        is_first = not os.path.exists(os.path.join(folder, images[-1]))
        more = ("--with_images", "--test_split=test[:2000]") if is_first else ()
        _pjrt(folder, "lower", run, *flags, f"--activation={activation(kind)}", f"--seed={seed}", *more)
        for file in images if is_first else ():
            os.replace(os.path.join(run, file), os.path.join(folder, file))


def _check_settings(run, study):
    """Ends the command if a run was lowered with other settings than those of the study."""
    found = _read(os.path.join(run, "manifest.json"))["settings"]
    for name, value in study.training.items():
        if name not in NOT_LOWERED and found[name] != value:
            sys.exit(f"{run} was lowered with --{name}={found[name]}, the study has {value}: begin in a new folder.")


def measure(folder):
    """Trains and attacks all runs, one after the other. (On an H100, six at once were not faster.)"""
    names = [name for name in os.listdir(folder) if os.path.exists(os.path.join(folder, name, "manifest.json"))]
    names.sort(key=lambda name: name.rsplit("-", 1)[::-1])  # the first seeds come first
    for name in names:
        _measure(folder, name)


def _measure(folder, name):
    run = os.path.join(folder, name)
    trained = os.path.join(run, TRAINED)
    if not (os.path.exists(trained) and os.path.exists(_file(run, "step", "json"))):
        images = (f"--images={os.path.join(folder, 'images.npz')}", f"--order={name.rsplit('-', 1)[1]}")
        _pjrt(folder, "run", run, *images, f"--output={trained}", f"--report={_file(run, 'step', 'json')}", log=run)
    images = f"--images={os.path.join(folder, 'test_images.npz')}"
    for attack, number in ATTACKS.items():
        if not os.path.exists(_file(run, attack)):
            which = (f"--function={attack}", f"--values={trained}", images, f"--train_steps={number // BATCH}")
            written = (f"--output={_file(run, attack)}", f"--report={_file(run, attack, 'json')}")
            _pjrt(folder, "run", run, *which, *written, log=run)


def finish(folder):
    """Judges and evaluates all runs, two at a time, and writes studies/resnet20.json."""
    import smooth_activations as studies

    names = studies.STUDIES[STUDY].names()
    names = [name for name in names if os.path.exists(_file(os.path.join(folder, name), "step", "json"))]
    if not names:
        sys.exit(f"{folder} has no trained run of {STUDY}: run `prepare` and `measure` first.")
    with ThreadPoolExecutor(2) as pool:
        records = pool.map(lambda name: _record(studies, folder, name), names)
        studies.keep(STUDY, dict(zip(names, records)), studies.FOLDER)


def _record(studies, folder, name):
    """Judges and evaluates a run, and returns its record. See `smooth_activations.record`."""
    run, evaluations = os.path.join(folder, name), studies.STUDIES[STUDY].evaluations
    _check_settings(run, studies.STUDIES[STUDY])
    network = os.path.join(run, "trained")
    if not os.path.exists(network):
        _pjrt(folder, "weights", run, os.path.join(run, TRAINED), network)
    done = {
        key: of for key, of in EVALUATIONS.items() if all(os.path.exists(_file(run, one)) for one in of[0].values())
    }
    here = {key: flags for key, flags in evaluations.items() if key not in done}
    studies.evaluate(run, network, here)
    record = studies.evaluated(run, here)
    for evaluation, (rows, number) in done.items():
        judged = {row: _judged(folder, run, attack) for row, attack in rows.items()}
        found = {row: one["robust"][:number] for row, one in judged.items()}
        if evaluation == "pgd-50":
            found["clean"] = judged["PGD-50"]["clean"][:number]
        if evaluation == "beyond":
            found["worst case"] = [all(image) for image in zip(*found.values())]
        record["attacks"][evaluation] = {row: studies.digits(values) for row, values in found.items()}
    step = _read(_file(run, "step", "json"))
    return {"device": step["device"], "versions": {"jax": step["jax"]}, "guard": "none"} | record


def _judged(folder, run, attack):
    """Returns which images are classified correctly without ("clean") and with an attack ("robust")."""
    judged = _file(run, f"{attack}-judged", "json")
    if not os.path.exists(judged):
        images = f"--images={os.path.join(folder, 'test_images.npz')}"
        given = (_file(run, attack), f"--values={os.path.join(run, TRAINED)}", images, f"--report={judged}")
        _pjrt(folder, "judge", run, *given)
    return _read(judged)


def _pjrt(folder, command, *arguments, log=None):
    """Runs a command of run_on_pjrt.py, with its output in LOG.txt."""
    whole = [sys.executable, os.path.join(folder, SCRIPT), command, *arguments]
    print(" ".join(whole[1:]), flush=True)
    with open(f"{log}.txt", "a", encoding="utf-8") if log else contextlib.nullcontext() as output:
        code = subprocess.run(whole, stdout=output, stderr=output, check=False).returncode
    if code:
        sys.exit(f"{command} of {arguments[0]} ended with {code}" + (f": see {log}.txt" if log else "."))


def _file(run, name, kind="npz"):
    return os.path.join(run, f"{name}.{kind}")


def _read(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


COMMANDS = {"prepare": prepare, "measure": measure, "finish": finish}

if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    COMMANDS[sys.argv[1]](sys.argv[2])
