"""Tests of a GPU provider: they run where it is there, and fail where it is not."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from inarch.runtime.providers import available_providers, short_name
from inarch.runtime.session import Session, SessionOptions

from tests.runtime.handmade import encoder

PROVIDER = os.environ.get("INARCH_GPU", "webgpu")
"""Which one; ``cuda`` on a machine that has it."""


@pytest.fixture(scope="session")
def provider() -> Iterator[str]:
    """ORT's name of the provider. A session is kept, since with the last one ORT drops the shaders that it has compiled."""
    there = {short_name(name): name for name in available_providers()}
    if PROVIDER not in there:
        pytest.fail(f"this environment has no {PROVIDER}, only {', '.join(there)}: run make test-gpu", pytrace=False)
    with Session(encoder().model, SessionOptions(providers=(there[PROVIDER],))):
        yield there[PROVIDER]
