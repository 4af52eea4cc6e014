# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON = .venv/bin/python
PYTEST = $(PYTHON) -m pytest
# Most tests wait for QEMU most of the time. A file's tests stay together (tests/conftest.py).
SIDE_BY_SIDE ?= -n logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder
# What `make demo` protects: embedded or qemu.
VM ?= embedded
# Seconds each fuzz target runs.
FUZZ_SECONDS ?= 60

.PHONY: help demo test lint debug sanitize soak fuzz bench bench-quick test-arm64 qemu-versions clean

help:
	@echo "make demo           protect a running VM, kill its primary, take it over; nothing but pip (under a minute)"
	@echo "make demo VM=qemu   the same with a real QEMU VM"
	@echo "make test           the tests, with real QEMU"
	@echo "make lint           ruff, mypy --strict, cython-lint"
	@echo "make bench          benchmarks with a report; bench-quick: in under two minutes"
	@echo "make soak           hours of faults and checkpoints; make fuzz: every parser, FUZZ_SECONDS each"
	@echo "make sanitize       the core's tests under ASan and UBSan; make debug: an unoptimised build"
	@echo "make test-arm64     the core's tests as ARM64 code under qemu-user"
	@echo "make qemu-versions  fetch QEMU 10.0 and 11.1 for the tests that meet them"

demo:
	@tools/setup $(if $(filter qemu,$(VM)),test qemu,demo)
	@$(PYTHON) -m colo demo --vm $(VM)

test:
	@tools/setup test qemu
	$(PYTEST) -m "not soak and not fuzz" $(SIDE_BY_SIDE)

lint:
	@tools/setup test,lint
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(PYTHON) -m colo.protocol.diagram --check docs/protocol.md
	PATH=$(CURDIR)/.venv/bin:$$PATH cython-lint colo/_fast

debug:
	@tools/setup test
	COLO_DEBUG=1 $(PYTHON) -m pip install -q --disable-pip-version-check -e ".[test]"
	@rm -f .venv/.installed

sanitize:
	@tools/setup test
	tools/sanitize

soak:
	@tools/setup test qemu
	$(PYTEST) -m soak --timeout 7200

fuzz:
	@tools/setup test,fuzz
	$(PYTEST) -m fuzz --timeout 7200
	$(PYTHON) tests/fuzz/run --seconds $(FUZZ_SECONDS)

bench:
	@tools/setup test,bench qemu
	$(PYTHON) -m benchmarks

bench-quick:
	@tools/setup test,bench
	$(PYTHON) -m benchmarks --quick

test-arm64:
	@tools/setup system
	tests/arm64/run

qemu-versions:
	tests/interop/fetch-qemu

clean:
	rm -rf .venv build colo/_fast/*/*.so colo/_fast/*/*.c colo/_fast/wire_numbers.h .sanitize
