# `make demo` and `make test` fetch what they need (scripts/) and share compiled dependencies.

export CARGO_TARGET_DIR ?= $(HOME)/.cache/cellql-target
STORE ?= demo/store
CARGO = set -e; PROTOC="$$(scripts/ensure-tools.sh)"; export PROTOC; cargo
# Always the whole workspace: other selections of packages enable other features of dependencies and compile them again.
WHOLE = --workspace --locked
RELEASE = $(CARGO_TARGET_DIR)/release/cellql

.PHONY: bench bench-ingest bench-loaders bench-model bench-neighbours bench-queries bench-train build clean columns
.PHONY: cuda data demo docs fmt fuzz fuzz-statements lint release test

demo: build
	rm -rf demo/store   # the default store only; another STORE belongs to the user and is never removed
	"$(CARGO_TARGET_DIR)/debug/cellql" demo "$(STORE)"

# Tests that were skipped are listed at the end, also where others failed.
SKIPPED = $(CARGO_TARGET_DIR)/debug/skipped-tests
test: fmt columns lint docs data
	rm -f "$(SKIPPED)"
	$(CARGO) test $(WHOLE) || failed=1; cat "$(SKIPPED)" 2>/dev/null >&2 || true; test -z "$$failed"

fmt:
	cargo fmt --all --check

columns:
	python3 scripts/check-columns.py

lint:
	$(CARGO) clippy $(WHOLE) --all-targets -- -D warnings

docs:
	export RUSTDOCFLAGS="-D warnings"; $(CARGO) doc $(WHOLE) --no-deps

build:
	$(CARGO) build $(WHOLE)

release:
	$(CARGO) build $(WHOLE) --release

# Real data, and the Python libraries that tests compare with. In CI (CI=true) tests fail without them.
data:
	scripts/fetch-test-data.sh || echo "the test data could not be fetched" >&2
	scripts/test-python.sh || echo "Python for tests could not be installed" >&2

# File readers under coverage-guided fuzzing. The stable toolchain builds it with RUSTC_BOOTSTRAP.
FUZZ_SECONDS ?= 60
fuzz: data
	command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	scripts/fuzz-seeds.sh fuzz/corpus/readers
	cd fuzz && RUSTC_BOOTSTRAP=1 cargo fuzz run readers --sanitizer none --target-dir "$(CARGO_TARGET_DIR)/fuzz" -- \
		-max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=2048 -timeout=30 -max_len=200000

# Damaged SQL statements on the demo store for FUZZ_SECONDS; FUZZ_SEED repeats a run.
fuzz-statements: data
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(CARGO) test $(WHOLE) --test it statements::damaged_statements_are_run_or_refused -- \
		--exact --ignored --nocapture

# Benchmarks use the release build.

# Ingest, compared with slaf and anndata, on resampled cells. Takes minutes and some gigabytes of disk.
BENCH_CELLS ?= 10000 50000
bench-ingest: release data
	scripts/bench-ingest.sh "$(RELEASE)" $(BENCH_CELLS)

# Kernels, compared with what the machine can do, and SQL compared with a direct call of the model. BENCH selects by
# name: make bench BENCH=attention.
bench:
	$(CARGO) bench $(WHOLE) --bench main -- $(BENCH)

# A model with 100M parameters, compared with PyTorch, on real cells. Installs PyTorch (some gigabytes); ten minutes or
# more.
bench-model: release data
	scripts/bench-model.sh "$(RELEASE)" $(BENCH_MODEL)

# Nearest neighbours, compared with hnsw_rs, hnswlib, usearch and faiss. Builds one crate in a target directory of its
# own.
bench-neighbours: data
	$(CARGO) build -p cellql-neighbours --locked --release --example bench --target-dir "$(CARGO_TARGET_DIR)/neighbours"
	scripts/bench-neighbours.sh "$(CARGO_TARGET_DIR)/neighbours/release/examples/bench" $(BENCH_NEIGHBOURS)

# Queries over a million resampled cells; those about expression are compared with slaf. Takes minutes and 5 GB of disk.
QUERY_CELLS ?= 1000000
bench-queries: release data
	scripts/bench-queries.sh "$(RELEASE)" $(QUERY_CELLS) $(BENCH_QUERIES)

# Data loading for training, compared with annbatch, scDataset and slaf, on resampled cells in ten data sets.
LOADER_CELLS ?= 300000
bench-loaders: release data
	scripts/bench-loaders.sh "$(RELEASE)" $(LOADER_CELLS) $(BENCH_LOADERS)

# Training steps, compared with PyTorch, on the same cells. Installs PyTorch (some gigabytes) if it is missing.
bench-train: release data
	scripts/bench-train.sh "$(RELEASE)" $(BENCH_TRAIN)

# The program with CUDA, in a target directory of its own, because it needs a driver to start. If there is no CUDA
# toolkit on PATH, one is installed from PyPI. CUDA_MODE=check only type-checks (a sixth of the download, no link).
# CUDA_FEATURES=nccl adds NCCL; its library is installed from PyPI too, but must be there already if a toolkit is on
# PATH.
CUDA_MODE ?= build
CUDA_FEATURES ?= cuda
cuda:
	set -e; PROTOC="$$(scripts/ensure-tools.sh)"; export PROTOC; \
	settings="$$(scripts/cuda-toolkit.sh "$(CARGO_TARGET_DIR)/cuda-toolkit" $(CUDA_MODE))"; eval "$$settings"; \
	cargo $(CUDA_MODE) $(WHOLE) --features $(CUDA_FEATURES) --target-dir "$(CARGO_TARGET_DIR)/cuda"
	test $(CUDA_MODE) = check || echo "built: $(CARGO_TARGET_DIR)/cuda/debug/cellql" >&2

clean:
	rm -rf "$(CARGO_TARGET_DIR)" demo/store
