"""ONNX graphs of detectors, made and checked where Headway cannot be imported: with torch, mmcv and mmdet only.

``analysis/bundle/alone.py`` loads this folder by its path, so its files import each other relatively and nothing of
Headway.
"""
