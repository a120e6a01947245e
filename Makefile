# Everything that is done with this project, by name. `make help` lists it.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.SUFFIXES:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
PY := $(VENV)/bin/python
export PYO3_PYTHON := $(CURDIR)/$(PY)
# One profile for the extension and for the Rust tests, so that every dependency is compiled once. `release` adds thin LTO: for
# wheels that are published and for benchmarks.
PROFILE ?= dev-release
RUST_SOURCES := $(shell find rust -name '*.rs' -o -name Cargo.toml) Cargo.toml Cargo.lock
STAMP := .cache/core-$(PROFILE).stamp
# Printed by every run of the tests; the same number gives the same random inputs again.
ifndef SEED
SEED := $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
endif
export SEED
FUZZ_CASES ?= 20000
TEST_CASES ?= 256
# How many files of tests run at a time. Half of the time of most goes by with waiting, for a process or a disk.
TEST_WORKERS ?= 2

# $(call optional,component,command): runs the command, or says why it was not run.
optional = @if tools/rust.sh $(1); then $(2); else code=$$?; [ $$code = 3 ] || exit $$code; echo "not run: $(2) ($(1) is missing)"; fi

.PHONY: help
help: ## List the targets
	@echo "emp-pipe: a durable telemetry pipeline. Start with  make demo"
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

# --- build -----------------------------------------------------------------------------------------------------------------

.PHONY: venv
venv: $(VENV)/.ready ## Make the virtual environment .venv with everything pinned in requirements/

$(VENV)/.ready: requirements/dev.txt tools/venv.sh
	@tools/venv.sh $(VENV)
	@touch $@

.PHONY: build
build: $(STAMP) ## Build the native core and install emp-pipe in .venv (only what changed; PROFILE=release for the fastest code)

$(STAMP): $(RUST_SOURCES) pyproject.toml $(VENV)/.ready
	@tools/rust.sh
	@tools/build.sh $(VENV) $(PROFILE)
	@rm -f .cache/core-*.stamp && touch $@

.PHONY: wheel
wheel: $(VENV)/.ready ## Build the wheel to install elsewhere, into dist/ (profile release, stripped)
	@tools/rust.sh
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(VENV)/bin/maturin build --quiet --release --strip --locked --out dist
	@ls dist/*.whl

# --- checks ----------------------------------------------------------------------------------------------------------------

.PHONY: check
check: check-format check-lint check-types check-stubs check-imports check-rust check-docs ## Formatting, lints, types, stubs, import rules, generated docs
	@echo "check: all passed"

.PHONY: format
format: $(VENV)/.ready ## Format Python and Rust
	@$(VENV)/bin/ruff check --fix --quiet . && $(VENV)/bin/ruff format --quiet . && cargo fmt --all

.PHONY: check-format
check-format: $(VENV)/.ready
	@echo "== formatting: ruff format, cargo fmt"
	@$(VENV)/bin/ruff format --check --quiet . || { echo "run  make format"; exit 1; }
	$(call optional,rustfmt,cargo fmt --all --check)

.PHONY: check-lint
check-lint: $(VENV)/.ready
	@echo "== lints: ruff check"
	@$(VENV)/bin/ruff check --quiet .

.PHONY: check-types
check-types: build
	@echo "== types: mypy strict"
	@$(VENV)/bin/mypy --no-error-summary

.PHONY: check-stubs
check-stubs: build
	@echo "== stubs: _core.pyi against the built module"
	@$(VENV)/bin/stubtest emp_pipe._core --mypy-config-file pyproject.toml \
		--allowlist tools/stubtest-allow.txt --ignore-unused-allowlist

.PHONY: check-imports
check-imports: build
	@echo "== import rules: import-linter"
	@$(VENV)/bin/lint-imports --no-logo >.cache/lint-imports.log || { cat .cache/lint-imports.log; exit 1; }

# What maturin tells pyo3 of the interpreter; clippy is told the same, or each would undo the other's build of the binding.
PYO3_CONFIG = $(addprefix PYO3_CONFIG_FILE=,$(abspath $(firstword $(wildcard target/maturin/pyo3-config-*-abi3.txt))))

.PHONY: check-rust
check-rust: build
	@echo "== lints: clippy, warnings are errors"
	$(call optional,clippy,env $(PYO3_CONFIG) cargo clippy --quiet --workspace --all-targets --profile $(PROFILE) --locked -- -D warnings)

.PHONY: docs
docs: build ## Write the generated pages: docs/configuration.md
	@$(PY) -m emp_pipe.config_docs

.PHONY: check-docs
check-docs: build
	@echo "== generated docs"
	@$(PY) -m emp_pipe.config_docs --check || { echo "run  make docs"; exit 1; }

# --- tests -----------------------------------------------------------------------------------------------------------------

.PHONY: test
test: test-rust test-python ## Every test that needs only Python and Rust, the fast ones first (SEED=n repeats a run)

.PHONY: test-rust
test-rust: $(VENV)/.ready
	@tools/rust.sh
	@echo "== Rust tests, seed $(SEED) (repeat with  make test SEED=$(SEED))"
	@PROPTEST_RNG_SEED=$(SEED) PROPTEST_CASES=$(TEST_CASES) cargo test --quiet --profile $(PROFILE) --locked -p emp-core

.PHONY: test-python
test-python: build
	@tools/redis.sh $(VENV)
	@tools/journal_remote.sh $(VENV)
	@echo "== Python tests, seed $(SEED) (repeat with  make test SEED=$(SEED))"
	@failed=; \
	$(PY) -m pytest -q -n $(TEST_WORKERS) --dist loadfile --hypothesis-seed=$(SEED) tests/unit tests/contract tests/e2e || failed=1; \
	echo "== chaos tests, one at a time: they load the machine on purpose"; \
	$(PY) -m pytest -q --hypothesis-seed=$(SEED) tests/chaos || failed=1; \
	[ -z "$$failed" ]

.PHONY: fuzz
fuzz: build ## The long form of the property tests (FUZZ_CASES=20000 each)
	@echo "== property tests, $(FUZZ_CASES) cases each, seed $(SEED)"
	@PROPTEST_RNG_SEED=$(SEED) PROPTEST_CASES=$(FUZZ_CASES) cargo test --quiet --profile $(PROFILE) --locked -p emp-core
	@EMP_FUZZ_CASES=$(FUZZ_CASES) $(PY) -m pytest -q --timeout=0 --hypothesis-seed=$(SEED) -m "hypothesis"

.PHONY: asan
asan: $(VENV)/.ready ## The Rust property tests under AddressSanitizer (needs a nightly toolchain; FUZZ_CASES=20000 each)
	@if ! rustup toolchain list 2>/dev/null | grep -q nightly; then echo "not run: no nightly toolchain; rustup toolchain install nightly"; exit 0; fi; \
	RUSTFLAGS=-Zsanitizer=address ASAN_OPTIONS=detect_leaks=0 CARGO_TARGET_DIR=target/asan \
	PROPTEST_RNG_SEED=$(SEED) PROPTEST_CASES=$(FUZZ_CASES) \
	cargo +nightly test --quiet --locked --target $$(rustc -vV | sed -n 's/^host: //p') -p emp-core

.PHONY: chaos
chaos: build ## The long form of the chaos tests (CHAOS_ROUNDS=40 kills beyond the short form, CHAOS_OUTAGE_S=120)
	@tools/redis.sh $(VENV)
	@echo "== chaos, seed $(SEED) (repeat with  make chaos SEED=$(SEED))"
	@CHAOS_ROUNDS=$(or $(CHAOS_ROUNDS),40) $(PY) -m pytest -q -s --timeout=1800 tests/chaos

.PHONY: demo
demo: build ## The main job on this machine, with real clients (DASH0_AUTH_TOKEN=... sends to Dash0)
	@$(PY) -m demo

.PHONY: interop
interop: build ## Unmodified counterparts in Node and Go against ours, where they are present
	@$(PY) -m pytest -q -rs --timeout=1300 tests/interop

# --- benchmarks ------------------------------------------------------------------------------------------------------------

.PHONY: bench
bench: ## Speed and memory beside the OpenTelemetry Collector, about 30 minutes (BENCH_CASES=part,part BENCH_PAIRS=7 BENCH_LONG=1)
	@$(MAKE) build PROFILE=release
	@$(PY) -m bench

.PHONY: bench-collector
bench-collector: ## Build the benchmarks' peer, the OpenTelemetry Collector, where Go is present (make bench does it too)
	@bench/collector/build.sh

.PHONY: bench-core
bench-core: $(VENV)/.ready ## The core alone (criterion)
	@tools/rust.sh
	@cargo bench --locked -p emp-core

# --- clean -----------------------------------------------------------------------------------------------------------------

.PHONY: clean
clean: ## Remove everything that was built, the virtual environment included
	rm -rf target $(VENV) .cache dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis bench/out python/emp_pipe/*.so
