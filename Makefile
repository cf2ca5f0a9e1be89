# `make demo` and `make test` get what they need, then do what they say. They share compiled dependencies.

export CARGO_TARGET_DIR ?= $(HOME)/.cache/cellql-target
STORE ?= demo/store
CARGO = set -e; PROTOC="$$(scripts/ensure-tools.sh)"; export PROTOC; cargo
# Always the whole workspace: another selection means other features of dependencies, and compiling them twice.
WHOLE = --workspace --locked

.PHONY: bench bench-ingest bench-loaders bench-model bench-neighbours bench-queries bench-train build clean cuda data demo fmt fuzz lint release test

demo: build
	rm -rf demo/store   # the demo's own place only: another STORE is the user's and never removed
	"$(CARGO_TARGET_DIR)/debug/cellql" demo "$(STORE)"

test: fmt lint data
	$(CARGO) test $(WHOLE)

fmt:
	cargo fmt --all --check

lint:
	$(CARGO) clippy $(WHOLE) --all-targets -- -D warnings

build:
	$(CARGO) build $(WHOLE)

release:
	$(CARGO) build $(WHOLE) --release

# Real data, and the Python libraries that tests compare with; without them the tests say that they are skipped.
data:
	scripts/fetch-test-data.sh || echo "test data could not be fetched; tests that need it are skipped" >&2
	scripts/test-python.sh || echo "Python for tests could not be installed; tests that need it are skipped" >&2

# Readers under coverage-guided fuzzing. The stable toolchain builds it with RUSTC_BOOTSTRAP.
FUZZ_SECONDS ?= 60
fuzz: data
	command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	scripts/fuzz-seeds.sh fuzz/corpus/readers
	cd fuzz && RUSTC_BOOTSTRAP=1 cargo fuzz run readers --sanitizer none --target-dir "$(CARGO_TARGET_DIR)/fuzz" -- \
		-max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=2048 -timeout=30 -max_len=200000

# Ingest beside slaf and anndata, on resampled cells. Takes minutes and some gigabytes of disk.
BENCH_CELLS ?= 10000 50000
bench-ingest: build data
	scripts/bench-ingest.sh "$(CARGO_TARGET_DIR)/debug/cellql" $(BENCH_CELLS)

# Single pieces beside what limits them; BENCH picks by name: make bench BENCH=attention. Same build as everything else.
bench:
	$(CARGO) bench $(WHOLE) --profile dev --bench main -- $(BENCH)

# The program with models on CUDA devices, in a folder of its own, for it needs a driver to start. Without a CUDA toolkit on
# PATH one comes from PyPI. CUDA_MODE=check only type-checks (a sixth of the download, no link). CUDA_FEATURES=nccl adds gradients of
# several devices by NCCL; its library comes from PyPI too, but with a toolkit on PATH it must be there already.
CUDA_MODE ?= build
CUDA_FEATURES ?= cuda
cuda:
	set -e; PROTOC="$$(scripts/ensure-tools.sh)"; export PROTOC; \
	settings="$$(scripts/cuda-toolkit.sh "$(CARGO_TARGET_DIR)/cuda-toolkit" $(CUDA_MODE))"; eval "$$settings"; \
	cargo $(CUDA_MODE) $(WHOLE) --features $(CUDA_FEATURES) --target-dir "$(CARGO_TARGET_DIR)/cuda"
	test $(CUDA_MODE) = check || echo "built: $(CARGO_TARGET_DIR)/cuda/debug/cellql" >&2

# A model of 100M sizes beside PyTorch, on real cells. Installs PyTorch (some gigabytes) and takes ten minutes and more.
bench-model: build data
	scripts/bench-model.sh "$(CARGO_TARGET_DIR)/debug/cellql" $(BENCH_MODEL)

# Nearest neighbours beside hnswlib, usearch and faiss. One crate alone, in release and in a folder of its own, so that nothing
# else is compiled anew.
bench-neighbours: data
	$(CARGO) build -p cellql-neighbours --locked --release --example bench --target-dir "$(CARGO_TARGET_DIR)/neighbours"
	scripts/bench-neighbours.sh "$(CARGO_TARGET_DIR)/neighbours/release/examples/bench" $(BENCH_NEIGHBOURS)

# Queries over a million resampled cells, warm, those about expression beside slaf. Making the cells takes minutes and 5 GB.
QUERY_CELLS ?= 1000000
bench-queries: build data
	scripts/bench-queries.sh "$(CARGO_TARGET_DIR)/debug/cellql" $(QUERY_CELLS) $(BENCH_QUERIES)

# Loaders of training data beside annbatch, scDataset and slaf's, on resampled cells in ten data sets.
LOADER_CELLS ?= 300000
bench-loaders: build data
	scripts/bench-loaders.sh "$(CARGO_TARGET_DIR)/debug/cellql" $(LOADER_CELLS) $(BENCH_LOADERS)

# Steps of training beside PyTorch, on the same cells. Installs PyTorch (some gigabytes) where it is missing.
bench-train: build data
	scripts/bench-train.sh "$(CARGO_TARGET_DIR)/debug/cellql" $(BENCH_TRAIN)

clean:
	rm -rf "$(CARGO_TARGET_DIR)" demo/store
