"""Runs a bundle where Headway does not exist: a program of its own, with torch and mmdet only.

Started as ``python -I -B alone.py`` by ``analysis.bundle.process``, never imported. It reads one JSON line from
standard input and answers in JSON lines on standard output; what libraries print goes to standard error.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import platform
import sys
from importlib.abc import MetaPathFinder
from typing import Any


class Blocker(MetaPathFinder):
    """Makes packages impossible to import, installed or not.

    Args:
        names: Top-level packages.
    """

    def __init__(self, names: list[str]) -> None:
        self._names = frozenset(names)
        loaded = self.loaded()
        if loaded:
            raise RuntimeError(f"loaded before they could be blocked: {loaded}")

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Refuses the blocked packages and leaves all others to the next finder."""
        if fullname.partition(".")[0] in self._names:
            raise ModuleNotFoundError(f"No module named '{fullname}' (blocked)", name=fullname)

    def loaded(self) -> list[str]:
        """Blocked packages that are loaded all the same."""
        return sorted(name for name in sys.modules if name.partition(".")[0] in self._names)

    def prove(self) -> list[str]:
        """Proves that nothing blocked is loaded or can be imported.

        Returns:
            The blocked packages.
        """
        for name in self._names:
            try:
                importlib.import_module(name)
            except ModuleNotFoundError:
                continue
            raise RuntimeError(f"{name} could be imported")
        if self.loaded():
            raise RuntimeError(f"loaded: {self.loaded()}")
        return sorted(self._names)


def load(bundle: str, device: str | None, options: dict[str, Any] | None = None) -> Any:
    """Loads a bundle as its README says, and strictly: mmdet itself only warns when weights do not fit.

    ``options`` changes its config (``cfg_options``).
    """
    import torch
    from mmdet.apis import init_detector

    # mmengine unpickles what does not load otherwise.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    weights = f"{bundle}/weights.pth"
    stored = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
    device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    model = init_detector(f"{bundle}/config.py", weights, device=device, cfg_options=options)
    built = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    odd = sorted(name for name in built.keys() | given.keys() if built.get(name) != given.get(name))
    if odd:
        raise RuntimeError(f"{len(odd)} weights do not fit the network, {odd[0]} for instance")
    return model


def detect(model: Any, images: list[str]) -> list[dict[str, Any]]:
    """Detects objects in image files: boxes (x1, y1, x2, y2 in px), labels and scores, best first."""
    from mmdet.apis import inference_detector

    found = []
    for image in images:
        instances = inference_detector(model, image).pred_instances.cpu()
        instances = instances[instances.scores.argsort(descending=True)]
        found.append({key: instances[key].tolist() for key in ("bboxes", "labels", "scores")})
    return found


def look(model: Any, job: dict[str, Any], tell: Any) -> None:
    """Tells what the bundle finds in image files, by trainers/look.py, which imports nothing of Headway."""
    from mmdet.utils import get_test_pipeline_cfg

    spec = importlib.util.spec_from_file_location("headway_look", job["program"])
    assert spec is not None and spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    pipeline = get_test_pipeline_cfg(model.cfg.copy())
    classes = list(model.dataset_meta["classes"])
    for index, image in enumerate(job["images"]):
        try:
            seen = program.look(model, pipeline, image, **job["arguments"])
        except Exception as error:
            raise RuntimeError(f"{image}: {type(error).__name__}: {error}") from error
        tell("seen", [index, classes, seen])


def graph(model: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Writes or compares the bundle's ONNX graph, on the CPU, by analysis/bundle/graph/, which imports nothing of
    Headway."""
    name = "headway_graph"
    spec = importlib.util.spec_from_file_location(
        name, f"{job['package']}/__init__.py", submodule_search_locations=[job["package"]]
    )
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    entry = importlib.import_module(f"{name}.entry")
    if "detector_type" in model.cfg.model:  # it predicts in a shorter type, which is no part of the graph
        model = load(job["bundle"], "cpu", {"model": {"dtype": "float32"}})
    found: dict[str, Any] = getattr(entry, job["act"])(model.to("cpu"), **job["arguments"])
    return found


def measure(model: Any, annotations: str, images: str, tell: Any) -> dict[str, Any]:
    """Measures accuracy with mmdet's own data pipeline and metric."""
    import torch
    from mmengine.evaluator import Evaluator
    from mmengine.runner import Runner

    loader_cfg, metric_cfg = model.cfg.test_dataloader, model.cfg.test_evaluator
    loader_cfg.num_workers = 0
    loader_cfg.dataset.update(data_root="", ann_file=annotations, data_prefix={"img": images})
    metric_cfg.ann_file = annotations
    loader = Runner.build_dataloader(loader_cfg)
    evaluator = Evaluator(metric_cfg)
    evaluator.dataset_meta = loader.dataset.metainfo
    done = 0
    with torch.no_grad():
        for batch in loader:
            outputs = model.test_step(batch)
            evaluator.process(data_samples=outputs, data_batch=batch)
            done += len(outputs)
            tell("progress", [done, len(loader.dataset)])
    found = {name.removeprefix("coco/").replace("@", "_"): value for name, value in evaluator.evaluate(done).items()}
    # Without any detection CocoMetric gives nothing, which is an AP of 0; -1 stands for no objects to measure on.
    metrics = {name: float(value) for name, value in found.items() if float(value) >= 0} or {"bbox_mAP": 0.0}
    return {"metrics": metrics, "images": done}


def versions() -> dict[str, str]:
    """Versions of what the bundle runs on."""
    found = {"python": platform.python_version()}
    for name in ("torch", "mmcv", "mmengine", "mmdet", "numpy", "pycocotools"):
        version = getattr(sys.modules.get(name), "__version__", None)
        if version is None:
            try:
                version = importlib.import_module("importlib.metadata").version(name)
            except Exception:  # not a distribution of that name
                continue
        found[name] = str(version)
    return found


def packages() -> dict[str, str]:
    """Names under which mmdet and what it rests on are installed: they have gone by several."""
    from importlib.metadata import packages_distributions

    found = packages_distributions()
    return {name: found[name][0] for name in ("mmcv", "mmengine", "mmdet") if name in found}


def main() -> None:
    """Does the job that standard input names."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(kind: str, value: Any) -> None:
        channel.write(json.dumps({"kind": kind, "value": value}) + "\n")
        channel.flush()

    job = json.loads(sys.stdin.readline())
    step = "blocking Headway"
    try:
        blocker = Blocker(job["blocked"])
        sys.meta_path.insert(0, blocker)
        step = "loading it with plain mmdet"
        gc.disable()  # what is imported stays: it takes a fifth less if the collector does not look at it
        model = load(job["bundle"], job["device"])
        gc.freeze()
        gc.enable()
        result: dict[str, Any] = {"device": str(next(model.parameters()).device)}
        if job["detect"]:
            step = "running it on images"
            result["detections"] = detect(model, job["detect"])
        if job["look"]:
            step = "looking at an image with it"
            look(model, job["look"], tell)
        if job["annotations"]:
            step = "measuring it on the validation images"
            result.update(measure(model, job["annotations"], job["images"], tell))
        if job["onnx"]:
            step = "comparing its ONNX graph" if job["onnx"]["act"] == "compare" else "writing its ONNX graph"
            result["onnx"] = graph(model, {**job["onnx"], "bundle": job["bundle"]})
        step = "proving that Headway was absent"
        result.update(blocked=blocker.prove(), versions=versions(), packages=packages())
    except Exception as error:
        tell("error", f"{step} failed: {type(error).__name__}: {error}")
    else:
        tell("result", result)


if __name__ == "__main__":
    main()
