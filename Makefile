# `make` on a fresh checkout needs Python 3.11 and pip; everything else is installed into .venv.
PYTHON ?= $(shell python3.11 -c "" 2>/dev/null && echo python3.11 || echo python3)
BIN := .venv/bin
STAMP := .venv/.installed
MODEL ?= doge-tiny
# What the tests of `deploy triton` run, 74 MB to fetch. In a folder of its own and without dependencies: the
# server reads arrays of numpy 1 only, and the client wants an older ml_dtypes.
TRITON_SERVER := nvidia-pytriton==0.7.0 numpy==1.26.4 tritonclient==2.73.0

.DEFAULT_GOAL := help
# plugins/editable fills with what pip builds there.
SOURCES := $(shell find plugins \( -path plugins/editable -o -path plugins/triton \) -prune -o -type f -print) plugins/editable/CMakeLists.txt
JOBS := $(shell nproc 2>/dev/null || echo 2)
# A file stays with one worker, so that what its tests share is made once.
# In the order of tests/conftest.py.
WORKERS := --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

# Where this is set, every process compiles what it imports anew: 12 s for torch and transformers, hundreds of times.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup plugins export test test-gpu docs docs-serve ctest sanitize sanitize-kernels sanitize-threads sanitize-library check-abi test-arm browser lint format bench fixtures clean

help: ## Show these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
		printf '  make %-10s %s\n' "$$name" "$$text"; done

# Installed again only when pyproject.toml or the C++ sources change: pip builds the native library too. The
# stamp comes last, so a broken install is repeated. Python compiles what it imports; most of what is installed
# nobody imports.
$(STAMP): pyproject.toml $(SOURCES)
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[export,eval,dev]'
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --upgrade --target .venv/triton-server $(TRITON_SERVER)
	touch $@

setup: $(STAMP) ## Create .venv and install everything into it

plugins: ## Build the native library again, in place
	cmake -S plugins -B build/plugins -DDOGE_TESTS=OFF -DDOGE_OUTPUT_DIRECTORY=$(CURDIR)/doge_export/native
	cmake --build build/plugins --parallel $(JOBS)

export: $(STAMP) ## Export the trained fixture, validate it and let it write a few words
	mkdir -p out
	$(BIN)/doge-export export -m $(MODEL) -o out/$(MODEL) --force
	$(BIN)/doge-export validate out/$(MODEL) --reference $(MODEL)
	$(BIN)/doge-export generate out/$(MODEL) -p "My fellow citizens" --max-new-tokens 60 --seed 1

# What compiles goes on while pip fetches and mypy thinks; pytest has the machine to itself.
test: ## Lint, check types and layers, and run the tests
	$(MAKE) --jobs=$(JOBS) --output-sync=target lint ctest sanitize-kernels check-abi test-arm browser
	$(MAKE) sanitize-library
	$(BIN)/python -m pytest $(WORKERS)

test-gpu: $(STAMP) ## Run what needs an NVIDIA GPU; -s shows the figures (never run so far)
	$(BIN)/python -m pytest -s tests/gpu

docs: $(STAMP) ## Build the documentation's site; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict # without --quiet, which hides warnings from --strict too
	@echo "Open build/site/index.html in a browser."

docs-serve: $(STAMP) ## Show the site on localhost, built again at every change
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

# In a folder of its own: the library that is in use stays as it is.
ctest: ## Run the kernels' own tests
	cmake -S plugins -B build/ctest
	cmake --build build/ctest --parallel $(JOBS)
	ctest --test-dir build/ctest --parallel $(JOBS) --output-on-failure --no-tests=error

# The same under AddressSanitizer and UBSan, and onnxruntime with a library that was built with them. What
# Python and onnxruntime never free is not ours to judge, so leaks are looked for in the kernels' tests alone.
SANITIZERS = $(foreach name,asan ubsan stdc++,$(shell $(or $(CXX),g++) -print-file-name=lib$(name).so))
sanitize: sanitize-kernels sanitize-library ## Run the kernels' tests and the library's with sanitizers

sanitize-kernels:
	cmake -S plugins -B build/sanitize -DDOGE_SANITIZE=ON
	cmake --build build/sanitize --parallel $(JOBS)
	ctest --test-dir build/sanitize --parallel $(JOBS) --output-on-failure --no-tests=error \
		--exclude-regex '(matrix|decode)_generic' # test_isa has these loops, in a third of the time

# In an emulator, where tests take 20 to 40 times as long: test_isa, which holds the loops to each other, runs for all of
# them, others for the best ones, and decode, matrix and rows by hand (`ctest --test-dir build/aarch64`). A whole model
# runs in scripts/try_arm.py.
test-arm: ## Build the kernels for ARM and run their tests in an emulator, with what apt can fetch
	$(PYTHON) scripts/cross_tools.py aarch64 || test $$? -eq 77
	if test -e build/cross/aarch64/complete; then \
		cmake -S plugins -B build/aarch64 --toolchain $(CURDIR)/plugins/cmake/aarch64.cmake && \
		cmake --build build/aarch64 --parallel $(JOBS) && \
		ctest --test-dir build/aarch64 --parallel $(JOBS) --output-on-failure --no-tests=error \
			--exclude-regex 'decode|matrix|rows|(attention|head|layer|sampling)_(generic|neon|dotprod)'; fi

# On the best loops of this processor alone: what threads do to each other is the same on all, and this takes minutes.
sanitize-threads: ## Run the kernels' tests under ThreadSanitizer
	cmake -S plugins -B build/threads -DDOGE_THREAD_SANITIZE=ON
	cmake --build build/threads --parallel $(JOBS)
	set -e; for test in $(basename $(notdir $(wildcard plugins/tests/test_*.cc))); do \
		echo $$test; env -u DOGE_EXPORT_ISA build/threads/$$test; done

sanitize-library: $(STAMP) # after sanitize-kernels
	DOGE_TEST_LIBRARY=build/sanitize/libdoge_export.so LD_PRELOAD="$(SANITIZERS)" \
		ASAN_OPTIONS=detect_leaks=0 $(BIN)/python -m pytest -q $(WORKERS) tests/plugins \
		--ignore tests/plugins/test_library.py --ignore tests/plugins/test_abi.py

check-abi: ## Hold our copy of ONNX Runtime's ABI to the real header, where npm can fetch it
	$(PYTHON) scripts/check_ort_abi.py || test $$? -eq 77

browser: ## Fetch a Chromium into build/browser for the tests of the server's page, where none is installed
	$(PYTHON) scripts/browser.py || test $$? -eq 77

lint: $(STAMP) ## Ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## Measure what an export costs
	$(BIN)/python scripts/bench_export.py

fixtures: $(STAMP) ## Fetch the corpus and train the fixtures again (an hour on two cores)
	$(BIN)/python scripts/fetch_corpus.py --cache build/corpus --slice models/heldout.txt
	$(BIN)/python scripts/train_tokenizer.py --corpus build/corpus --out build/tokenizer
	$(BIN)/python scripts/train_fixture.py --corpus build/corpus --tokenizer build/tokenizer \
		--out models/doge-tiny --work build/train-dense --compile \
		--steps 2400 --warmup 100 --decay 500 --batch 4 --part 1 --lr 2.5e-3 --seed 20261123
	$(BIN)/python scripts/train_fixture.py --corpus build/corpus --moe-from models/doge-tiny \
		--out models/doge-tiny-moe --work build/train-moe --compile \
		--steps 900 --warmup 50 --decay 400 --batch 4 --part 1 --lr 1.5e-3 --balance 0.001 --seed 20261124

clean: ## Remove what was built; .venv and the native library, which belongs to it, stay
	rm -rf build dist out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find doge_export scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
