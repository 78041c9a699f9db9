# Everything from an empty clone; needs Python 3.10 or later, gcc/g++ and make.
PYTHON ?= python3
JOBS ?= $(shell nproc)
# the version that the checks run with; any from 2.11 on will do
TORCH ?= torch==2.13.0

VENV := .venv
BIN := $(VENV)/bin
# bytecode is left to the first import: most modules never see one
PIP := $(BIN)/pip install -q --disable-pip-version-check --no-compile
EXTRAS := dev
CPU_WHEELS := https://download.pytorch.org/whl/cpu

NATIVE := $(shell find csrc -type f)
PACKAGE := pyproject.toml setup.py CMakeLists.txt $(wildcard cmake/*.py) $(NATIVE)
REPORTS := build/reports
EMULATED := build/emulated/libgtkern_emulated.so
SANITIZED := build/sanitized
# The sanitizer must be loaded before Python, and the C++ library before it looks for exceptions.
PRELOADED = LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so.6)" \
	ASAN_OPTIONS=detect_leaks=0:malloc_context_size=2
# The C library keeps what is freed: fresh pages cost tests with large tensors a tenth of their time.
KEEP_FREED := MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592
# ninja counts jobs on its own, not by make's
BUILD := MAKEFLAGS= $(BIN)/cmake --build
CMAKE := $(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
	-DPython_EXECUTABLE=$(abspath $(BIN)/python) -DGTKERN_WERROR=ON -S .

# ON builds the installed libraries with warnings as errors, as `make test` does; what was once
# built so stays so, for another choice would compile everything anew.
STRICT ?= $(if $(wildcard $(VENV)/.installed-strict-ON),ON,OFF)
INSTALLED := $(VENV)/.installed-strict-$(STRICT)

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint cuda emulated tests-emulated tests sanitized fuzz bench docs clean

help:
	@echo "make demo    set up, then train Spexphormer in two stages on generated data"
	@echo "make test    set up, then every check: lint, builds, sanitizers, tests"
	@echo "make setup   only set up: .venv with torch, the native libraries and the package"
	@echo "make lint    ruff, mypy, clang-format"
	@echo "make fuzz    call every public function with thousands of odd inputs"
	@echo "make sanitized  the tests of the CPU kernels under the address sanitizers"
	@echo "make bench   time every op against its peers"
	@echo "make docs    the documentation site, in build/site"
	@echo "make clean   remove .venv and everything that was built"

setup: $(INSTALLED)

# torch comes first: the native libraries are built against it. Where there is no NVIDIA GPU its
# far smaller CPU build is taken, if the index that has it answers.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	@if command -v nvidia-smi > /dev/null; then index=; \
	elif $(BIN)/python -c "import urllib.request as u; u.urlopen('$(CPU_WHEELS)/torch/', timeout=5)" \
		2> /dev/null; then index="--extra-index-url $(CPU_WHEELS)"; \
	else index=; fi; \
	echo "installing torch and the build tools"; \
	$(PIP) $$index \
		"$(TORCH)" "setuptools>=77" cmake ninja pybind11 numpy
	@touch $@

# Downloads take little of the cores: `make test` compiles for GPUs beside them.
$(VENV)/.dependencies: $(VENV)/.torch pyproject.toml
	@echo "installing what gtkern depends on"
	GTKERN_NATIVE=OFF $(PIP) --no-build-isolation -e ".[$(EXTRAS)]"
	@touch $@

$(INSTALLED): $(VENV)/.dependencies $(PACKAGE)
	@echo "building the native libraries and installing gtkern"
	CMAKE_ARGS="$(CMAKE_ARGS) -DGTKERN_WERROR=$(STRICT)" $(PIP) \
		--no-build-isolation --no-deps -e .
	@$(BIN)/python -c "from gtkern import _native; print('native CPU kernels:', \
		_native.missing_reason('cpu') or 'ready')"
	@rm -f $(VENV)/.installed-strict-*
	@touch $(VENV)/.installed-strict-OFF $@

demo: setup
	$(BIN)/gtkern train spexphormer

# What one process compiles of the libraries' Python the next ones find, whatever the caller's shell
# says; without it each of the many that the tests start would take twenty seconds to begin.
unexport PYTHONDONTWRITEBYTECODE

# A strict installation satisfies every other target too, so the order of calls does not matter.
test:
	@$(MAKE) --no-print-directory -j$(JOBS) --output-sync=target STRICT=ON setup cuda emulated
	@$(MAKE) --no-print-directory -j$(JOBS) --output-sync=target lint tests-emulated
	@$(MAKE) --no-print-directory tests

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(NATIVE) $(wildcard tests/*.cpp)

# Registers and spills of every kernel are kept in $(REPORTS).
cuda: $(VENV)/.torch
	@if command -v nvcc > /dev/null; then \
		$(CMAKE) -B build/cuda -DGTKERN_CUDA=ON "-DGTKERN_CUDA_ARCHITECTURES=80-real;90a-real" \
			-DGTKERN_PTXAS_REPORTS=$(abspath $(REPORTS)) > /dev/null && \
		$(BUILD) build/cuda --target gtkern_cuda && \
		echo "registers and spills: $(REPORTS)"; \
	else echo "no nvcc on the path: the CUDA kernels are not compiled for a GPU"; fi

emulated: $(VENV)/.torch
	$(CMAKE) -B build/emulated -DGTKERN_EMULATE=ON -DGTKERN_SANITIZE=address,undefined > /dev/null
	$(BUILD) build/emulated

# Inductor's tests would run the C++ compiler under the sanitizer too.
tests-emulated: setup emulated
	$(PRELOADED) OMP_NUM_THREADS=1 \
		$(BIN)/pytest -q -n $(JOBS) --junitxml=$(REPORTS)/emulated.xml --emulated-library=$(EMULATED) --require=cuda -k "cuda and not inductor" tests/ops

# One thread for each of the processes that share the cores; how long each test took is kept.
tests: setup
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(KEEP_FREED) $(BIN)/pytest -q -n $(JOBS) \
		--durations=20 --durations-min=8 --junitxml=$(REPORTS)/tests.xml \
		--require=reference,cpu,triton

# The CPU kernels and gtkern._graph under the sanitizers, in a copy of the package that has them.
# Left out: the tests whose own subjects are other compilers, processes or sizes of gigabytes.
sanitized: setup
	$(CMAKE) -B $(SANITIZED)/native -DGTKERN_CUDA=OFF -DGTKERN_SANITIZE=address,undefined > /dev/null
	$(BUILD) $(SANITIZED)/native
	rm -rf $(SANITIZED)/tree && mkdir $(SANITIZED)/tree
	cp -r gtkern tests bench csrc pyproject.toml $(SANITIZED)/tree
	$(BIN)/cmake --install $(SANITIZED)/native --prefix $(SANITIZED)/tree/gtkern > /dev/null
	cd $(SANITIZED)/tree && $(PRELOADED) OMP_NUM_THREADS=2 \
		$(abspath $(BIN)/python) -m pytest -q -n $(JOBS) -m "not large" --require=cpu \
		-k "not triton and not inductor and not reference" \
		tests/ops tests/test_graph.py tests/test_ragged.py tests/test_block_sparse.py \
		tests/test_expander.py tests/test_structure.py tests/test_threads.py tests/test_fuzz.py

# Thousands of odd inputs for every public function, each room in a process of its own.
CASES ?= 10000
fuzz: setup
	PYTHONPATH=tests $(BIN)/python -m fuzz --cases $(CASES)

bench: setup
	$(BIN)/python bench/run.py

# A warning, such as a link that leads nowhere, ends the build.
docs: setup
	$(BIN)/mkdocs build --quiet --strict
	@echo "the site: $(abspath build/site/index.html)"
	@echo "with its search: $(BIN)/mkdocs serve"

clean:
	rm -rf $(VENV) build dist gtkern/lib gtkern/_graph*.so *.egg-info
