"""Measures `keras-sat serve` under a bounded load on loopback: p50 and p99 of a request, also during a version switch.

    python benchmarks/serving.py [--requests=400] [--clients=4] [--batch=8]

The server runs in its own process. The clients are threads; each sends its next request when the last one is answered.
When half of the requests are answered, a new version replaces the old one. No request may fail.
"""

import argparse
import base64
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from keras_sat import data, export, models


def rest(port, signature, values):
    """Returns a function that sends a REST request in row format, and returns the number of predictions."""
    body = json.dumps({"signature_name": signature, "instances": values}).encode()

    def ask():
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/models/net:predict", data=body)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return len(json.load(answer)["predictions"])

    return ask


def rpc(port, signature, name, array):
    """Returns a function that sends a gRPC request, and returns the number of predictions."""
    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(f"127.0.0.1:{port}"))
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "net", signature
    request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    return lambda: stub.Predict(request, timeout=60).outputs["classes"].tensor_shape.dim[0].size


def load(ask, batch, clients, requests, at_half):
    """Sends requests; returns the seconds of each answered request, and the number of failed ones.

    Args:
        ask: sends a request, returns the number of predictions.
        batch: number of predictions in a correct answer.
        clients: number of threads.
        requests: number of requests.
        at_half: called once, when half of the requests are answered.
    """
    seconds, failed, lock, switched = [], [], threading.Lock(), threading.Event()

    def client():
        while len(seconds) + len(failed) < requests:
            start = time.perf_counter()
            try:
                answered = ask() == batch
            except Exception as error:  # counted, and reported at the end
                answered = print(error)
            with lock:
                (seconds if answered else failed).append(time.perf_counter() - start)
                is_half = len(seconds) >= requests // 2 and not switched.is_set()
                if is_half:
                    switched.set()
            if is_half:
                at_half()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds, len(failed)


def publish(source, base, version):
    """Adds a version to a model's folder: copied first, then renamed."""
    shutil.copytree(source, os.path.join(base, f".{version}"))
    os.rename(os.path.join(base, f".{version}"), os.path.join(base, str(version)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    images, _ = next(iter(data.load("fashion_mnist_mini", "test", args.batch)))
    images = images.numpy()
    files = [tf.io.encode_png(image).numpy() for image in images]
    with tempfile.TemporaryDirectory() as folder:
        model = models.ResNet8(input_shape=(28, 28, 1), classes=10, activation="silu")
        saved, base = os.path.join(folder, "saved"), os.path.join(folder, "net")
        export.export_saved_model(model, saved)
        os.mkdir(base)
        publish(saved, base, 1)
        call, pixels = tf.saved_model.load(saved).signatures["serving_default"], tf.constant(images, tf.float32)
        call(images=pixels)
        print(f"direct call                {1e3 * statistics.median(timed(lambda: call(images=pixels))):6.1f} ms")
        script = os.path.join(os.path.dirname(sys.executable), "keras-sat")
        command = [script, "serve", base, "--rest_port=0", "--grpc_port=0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            server.stdout.readline()
            ports = [
                int(re.search(r":(\d+)", server.stdout.readline().replace("http:", "")).group(1)) for _ in range(2)
            ]
            encoded = [{"b64": base64.b64encode(file).decode()} for file in files]
            asks = {
                "REST, JSON numbers": rest(ports[0], "serving_default", images.tolist()),
                "REST, PNG in base64": rest(ports[0], "serving_bytes", encoded),
                "gRPC, float32": rpc(ports[1], "serving_default", "images", images.astype(np.float32)),
                "gRPC, uint8": rpc(ports[1], "serving_uint8", "images", images),
                "gRPC, PNG": rpc(ports[1], "serving_bytes", "image_bytes", np.array(files, object)),
            }
            print(f"{args.clients} clients, {args.requests} requests each row, {args.batch} images a request")
            for version, (name, ask) in enumerate(asks.items(), 2):
                start = time.perf_counter()
                seconds, failed = load(
                    ask, args.batch, args.clients, args.requests, lambda version=version: publish(saved, base, version)
                )
                rate = len(seconds) / (time.perf_counter() - start)
                p50, p99 = (1e3 * np.percentile(seconds, q) for q in (50, 99))
                print(f"{name:<22} p50 {p50:6.1f} ms   p99 {p99:6.1f} ms   {rate:5.0f} requests/s   {failed} failed")
        finally:
            server.terminate()
            server.wait()


def timed(function, repeats=20):
    """Returns the seconds of each call of a function."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
