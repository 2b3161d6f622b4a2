"""Annotations in COCO's format: files, images and texts as inputs, tasks that are judged, a world to learn in."""
